"""Stopping early: a request that all ranks follow after the same step."""

import signal
import threading
from typing import Any

from ftdist.base.errors import LaunchError
from ftdist.run.rundir import RunDir


class Preemption:
    """A request to stop the run. It is made by creating ``RUN_DIR/preempt`` or by sending SIGTERM to any rank.

    A rank never stops because of its own request only. The requests are summed over all ranks together with the loss of
    a step, so that all ranks stop after the same step.
    """

    def __init__(self, run: RunDir, rank: int, attempt: int = 0) -> None:
        """Install the handler of SIGTERM.

        Args:
            attempt: Number of this start of the run.
        """
        self._run, self._rank, self._attempt = run, rank, attempt
        self._signalled = threading.Event()
        signal.signal(signal.SIGTERM, self._on_signal)

    def _on_signal(self, signum: int, frame: Any) -> None:
        self._signalled.set()

    def requested(self) -> bool:
        """Return whether this rank was asked to stop. Only rank 0 looks for the file.

        Raises:
            LaunchError: A newer attempt of the run has started. Slurm gives up a node that it cannot reach and starts
                the job on other nodes. The ranks on the lost node may still be running, and must not write any more.
        """
        if self._rank == 0 and int(self._run.read_status().get("attempt", 0)) > self._attempt:
            raise LaunchError(f"this process belongs to attempt {self._attempt}, but a newer attempt of "
                              f"{self._run.path} is running; this process stops")  # fmt: skip
        return self._signalled.is_set() or (self._rank == 0 and self._run.preempt.exists())
