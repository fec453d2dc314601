"""Rank 0 records the phases of training in the timeline of the run."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from ftdist.run import timeline
from ftdist.run.rundir import RunDir
from ftdist.run.timeline import BEAT_S, STEPS


class TrainingTimeline:
    """Records the phases of one attempt. On other ranks than 0 its methods do nothing."""

    def __init__(self, run: RunDir, first: bool) -> None:
        self._path, self._first = run.timeline, first
        self._attempt = int(run.read_status().get("attempt") or 0) if first else 0
        self._written = 0.0

    def enter(self, phase: str, step: int) -> None:
        """Record that a phase begins after ``step`` optimizer steps."""
        if self._first:
            timeline.append(self._path, phase, self._attempt, step=step)
            self._written = time.monotonic()

    def beat(self, step: int) -> None:
        """Record the number of steps that are done, if nothing was recorded for ``BEAT_S``."""
        if time.monotonic() - self._written >= BEAT_S:
            self.enter(STEPS, step)

    @contextmanager
    def during(self, phase: str, step: int) -> Iterator[None]:
        """Record a phase that begins and ends between two steps."""
        self.enter(phase, step)
        yield
        self.enter(STEPS, step)
