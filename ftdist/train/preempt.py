"""Stopping early: a flag that all ranks agree on at a step boundary."""

import signal
import threading
from typing import Any

from ftdist.base.errors import LaunchError
from ftdist.run.rundir import RunDir


class Preemption:
    """Asked for by touching ``RUN_DIR/preempt`` (rank 0 looks) or by SIGTERM to any rank.

    A rank never acts on its own flag: what it asked for is summed over ranks with the step's loss, so that all stop
    after the same step.
    """

    def __init__(self, run: RunDir, rank: int, attempt: int = 0) -> None:
        self._run, self._rank, self._attempt = run, rank, attempt
        self._signalled = threading.Event()
        signal.signal(signal.SIGTERM, self._on_signal)

    def _on_signal(self, signum: int, frame: Any) -> None:
        self._signalled.set()

    def asked(self) -> bool:
        """
        Raises:
            LaunchError: the run goes on elsewhere. Slurm gives up a node that it cannot reach, and starts the job on
                others; the ranks on the lost node may still run, and must not write any more.
        """
        if self._rank == 0 and int(self._run.read_status().get("attempt", 0)) > self._attempt:
            raise LaunchError(f"attempt {self._attempt} was given up: {self._run.path} goes on in a newer one")
        return self._signalled.is_set() or (self._rank == 0 and self._run.preempt.exists())
