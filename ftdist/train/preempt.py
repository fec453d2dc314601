"""Stopping early: a flag that all ranks agree on at a step boundary."""

import signal
import threading
from typing import Any

from ftdist.rundir import RunDir


class Preemption:
    """Asked for by touching ``RUN_DIR/preempt`` (rank 0 looks) or by SIGTERM to any rank.

    A rank never acts on its own flag: what it asked for is summed over ranks with the step's loss, so that all stop
    after the same step.
    """

    def __init__(self, run: RunDir, rank: int) -> None:
        self._run, self._rank = run, rank
        self._signalled = threading.Event()
        signal.signal(signal.SIGTERM, self._on_signal)

    def _on_signal(self, signum: int, frame: Any) -> None:
        self._signalled.set()

    def asked(self) -> bool:
        return self._signalled.is_set() or (self._rank == 0 and self._run.preempt.exists())
