"""The warm-up of a run whose number of steps is known."""

import pytest

from ftdist.base.counts import count
from ftdist.base.errors import ConfigError
from ftdist.config.optim import OptimConfig
from ftdist.plan.warmup import fit_warmup


@pytest.mark.parametrize(
    ("ratio", "steps", "warmup"),
    [(0.1, 100, 10), (0.1, 101, 11), (0.07, 100, 7), (0.03, 1000, 30), (1e-5, 10, 1), (0.0, 10, 0), (1.0, 7, 7)],
)
def test_a_ratio_becomes_steps_rounded_up(ratio: float, steps: int, warmup: int) -> None:
    optim = OptimConfig(warmup_ratio=ratio)
    assert fit_warmup(optim, steps) is None
    assert (optim.warmup_steps, optim.warmup_ratio) == (warmup, None)
    assert fit_warmup(optim, steps) is None and optim.warmup_steps == warmup


@pytest.mark.parametrize(
    ("warmup", "decay", "steps", "fits"),
    [(30, 0, 30, 30), (30, 0, 29, 2), (30, 0, 6, 0), (30, 10, 40, 30), (30, 10, 39, 3), (30, 19, 20, 1), (30, 9, 5, 0)],
)
def test_a_warm_up_is_shortened_only_where_it_does_not_fit(warmup: int, decay: int, steps: int, fits: int) -> None:
    optim = OptimConfig(warmup_steps=warmup, decay_steps=decay, shorten_warmup=True)
    note = fit_warmup(optim, steps)
    assert (optim.warmup_steps, optim.shorten_warmup) == (fits, False)
    if fits == warmup:
        assert note is None
    else:
        assert note is not None
        assert f"{count(fits, 'step')} instead of {warmup}" in note and f"{steps} steps" in note
        assert (f"{decay} of them decay" in note) == bool(decay)


def test_a_warm_up_that_must_not_be_shortened_stays() -> None:
    optim = OptimConfig(warmup_steps=30)
    assert fit_warmup(optim, 6) is None and optim.warmup_steps == 30


def test_a_ratio_and_a_decay_that_do_not_fit_are_refused() -> None:
    found = "optim.warmup_ratio=0.5 gives 5 warm-up steps, but with optim.decay_steps=8 only 2 of 10 steps remain"
    with pytest.raises(ConfigError, match=found) as error:
        fit_warmup(OptimConfig(warmup_ratio=0.5, decay_steps=8), 10)
    assert error.value.fix == "optim.warmup_ratio=0.1"
    optim = OptimConfig(warmup_ratio=0.5, decay_steps=8, shorten_warmup=True)
    assert fit_warmup(optim, 10) is not None and optim.warmup_steps == 1
