"""Stopping early: a request that all ranks follow after the same step."""

import signal
import threading
import time
from typing import Any

from ftdist.base.errors import LaunchError
from ftdist.run.rundir import RunDir
from ftdist.train.time_limit import TimeLimit


class Preemption:
    """A request to stop the run. It is made by creating ``RUN_DIR/preempt``, by sending SIGTERM to any rank, or by rank
    0 when the time limit of its job is near.

    A rank never stops because of its own request only. The requests are summed over all ranks together with the loss of
    a step, so that all ranks stop after the same step.
    """

    def __init__(self, run: RunDir, rank: int, attempt: int = 0, stop_before_s: float = 0.0) -> None:
        """Install the handler of SIGTERM.

        Args:
            attempt: Number of this start of the run.
            stop_before_s: Minimum number of seconds before the end of a job at which the run stops.
        """
        self._run, self._rank, self._attempt = run, rank, attempt
        self._limit = TimeLimit(run, stop_before_s)
        self.near_limit = ""
        """Why rank 0 stops the run, if the time limit of the job is near."""
        self._signalled = threading.Event()
        signal.signal(signal.SIGTERM, self._on_signal)

    def _on_signal(self, signum: int, frame: Any) -> None:
        self._signalled.set()

    def requested(self) -> bool:
        """Return whether this rank was asked to stop. Only rank 0 looks at the run directory.

        Raises:
            LaunchError: A newer attempt of the run has started. Slurm gives up a node that it cannot reach and starts
                the job on other nodes. The ranks on the lost node may still be running, and must not write any more.
        """
        if self._rank != 0:
            return self._signalled.is_set()
        status = self._run.read_status()
        if int(status.get("attempt", 0)) > self._attempt:
            raise LaunchError(f"this process belongs to attempt {self._attempt}, but a newer attempt of "
                              f"{self._run.path} is running; this process stops")  # fmt: skip
        self.near_limit = self.near_limit or self._limit.why_stop(status, time.time())
        return self._signalled.is_set() or self._run.preempt.exists() or bool(self.near_limit)
