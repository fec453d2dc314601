"""Faults that strike one rank of a run on forked ranks."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict

from ftdist.run.rundir import RunDir
from tests.helpers.group import start_attempt

Fault = Callable[[], None]


@dataclass(frozen=True)
class Fallen:
    """How the ranks ended."""

    codes: Dict[int, int]
    """Exit code by rank, or minus the signal."""
    struck: float
    """Time at which the fault struck."""
    ended_s: Dict[int, float]
    """Seconds from the fault to the end, by rank."""


def at_step(step: int, fault: Fault, struck: Path) -> Fault:
    """Return a function for ``arm``: ``fault`` strikes that rank before its optimizer step ``step`` (0 is the first).

    The file ``struck`` is made at that moment.
    """

    def arm() -> None:
        from ftdist.train import loop

        train_step = loop.train_step

        def struck_step(training: Any, index: int) -> Any:
            if index == step:
                struck.touch()
                fault()
            return train_step(training, index)

        loop.train_step = struck_step

    return arm


def run_group(run: RunDir, world_size: int, arm: Dict[int, Fault], struck: Path, timeout_s: float = 120.0) -> Fallen:
    """Start all ranks of a run and wait until all have ended. No process is left in any case."""
    group = start_attempt(run, world_size, arm=arm)
    codes = group.wait(timeout_s)
    when = struck.stat().st_mtime if struck.exists() else time.time()
    return Fallen(codes, when, {rank: at - when for rank, at in group.ended.items()})
