"""The warm-up of a run whose number of steps is known."""

import math
from fractions import Fraction
from typing import Optional

from ftdist.base.counts import count
from ftdist.base.errors import ConfigError
from ftdist.config.checks import check_schedule_fits
from ftdist.config.optim import OptimConfig
from ftdist.config.schema import RunConfig
from ftdist.plan.run_length import num_steps

SHORTENED = 10
"""A warm-up that is shortened takes at most the number of steps divided by this."""


def fit_schedule(config: RunConfig, rows: int) -> Optional[str]:
    """Fit warm-up and decay into a run, in place.

    Args:
        config: The config of the run.
        rows: Packed training rows of one epoch. They are not used if ``train.max_steps`` is set.

    Returns:
        A note for the user if the warm-up was shortened.

    Raises:
        ConfigError: Warm-up and decay do not fit into the run.
    """
    train, steps = config.train, num_steps(config, rows)
    why = (
        f"{count(rows, 'row')} × epochs={train.epochs or 0:g} / {count(config.batch.global_batch_size, 'row')} per step"
    )
    note = fit_warmup(config.optim, steps)
    check_schedule_fits(config.optim, steps, f"train.max_steps={steps}" if train.max_steps else why)
    return note


def fit_warmup(optim: OptimConfig, steps: int) -> Optional[str]:
    """Replace ``warmup_ratio`` by ``warmup_steps``, and shorten the warm-up if that is allowed and necessary.

    The config is changed in place. Calling the function again changes nothing. If ``warmup_steps`` is too long and must
    not be shortened, it is not changed, and the caller must refuse it. A ``warmup_ratio`` that is too long is refused
    here.

    Args:
        optim: The optimizer settings.
        steps: Number of optimizer steps of the run.

    Returns:
        A note with the numbers if the warm-up was shortened.

    Raises:
        ConfigError: The warm-up from ``warmup_ratio`` and the decay do not fit into the run.
    """
    room = max(0, steps - optim.decay_steps)
    if optim.warmup_ratio is not None:
        ratio = optim.warmup_ratio
        warmup = math.ceil(Fraction(str(ratio)) * steps)  # exact, unlike floats: 0.07 of 100 steps are 7
        if warmup > room and not optim.shorten_warmup:
            raise ConfigError(
                f"optim.warmup_ratio={ratio:g} gives {count(warmup, 'warm-up step')}, but with optim.decay_steps="
                f"{optim.decay_steps} only {room} of {count(steps, 'step')} remain",
                "warm-up and decay that fit into the run",
                f"optim.warmup_ratio={min(1 / SHORTENED, room / steps):g}",
            )
        optim.warmup_steps, optim.warmup_ratio = warmup, None
    note = None
    if optim.shorten_warmup and optim.warmup_steps > room:
        shorter = min(steps // SHORTENED, room)
        note = f"the warm-up is {count(shorter, 'step')} instead of {optim.warmup_steps}, because the run has only "
        note += count(steps, "step")
        note += f", {optim.decay_steps} of them decay" if optim.decay_steps else ""
        optim.warmup_steps = shorter
    optim.shorten_warmup = False
    return note
