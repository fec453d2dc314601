"""Moments of a run at which tests kill it."""

import random
from typing import Callable, NamedTuple

from ftdist.run.rundir import RunDir
from tests.helpers.runs import newest_step

MAX_STEPS = 10
# Evaluations (4, 8, 10) and checkpoints (3, 6, 9, 10) fall on different steps.
SCHEDULE = (f"train.max_steps={MAX_STEPS}", "train.eval_every=4", "train.checkpoint_every=3")
MOMENTS = ("at a step", "while a checkpoint is written", "after the last checkpoint")


class Kill(NamedTuple):
    """A kill of a run that has published its first checkpoint."""

    reached: Callable[[RunDir], bool]
    """Whether the run has come to that moment."""
    delay_s: float
    """Seconds from then to the kill."""
    text: str


def draw_kill(moment: str, draw: random.Random) -> Kill:
    """Return a kill at one of ``MOMENTS``; steps and delays are drawn at random."""
    if moment == "while a checkpoint is written":
        return Kill(lambda run: _published(run) and any(run.checkpoints.glob(".tmp-*")), 0.0, moment)
    if moment == "after the last checkpoint":
        return Kill(lambda run: run.checkpoint(MAX_STEPS).is_dir(), 0.0, moment)
    step, delay_s = draw.randint(3, MAX_STEPS - 2), draw.uniform(0, 0.08)
    text = f"{delay_s * 1000:.0f} ms after step {step}"
    return Kill(lambda run: _published(run) and newest_step(run) >= step, delay_s, text)


def _published(run: RunDir) -> bool:
    return bool(run.published_checkpoints())
