"""The learning rate of every schedule."""

from itertools import pairwise

import pytest

from ftdist.config.optim import OptimConfig, Schedule
from ftdist.train.schedule import learning_rate

STEPS = 100


def _curve(**fields: object) -> list:
    return [learning_rate(OptimConfig(lr=1.0, **fields), step, STEPS) for step in range(STEPS)]


@pytest.mark.parametrize("schedule", list(Schedule))
def test_warm_up_is_linear_and_reaches_the_peak(schedule: Schedule) -> None:
    decay = 10 if schedule is Schedule.wsd else 0
    curve = _curve(schedule=schedule, warmup_steps=4, decay_steps=decay)
    assert curve[:4] == [0.25, 0.5, 0.75, 1.0]
    assert curve[4] == max(curve) == 1.0


def test_constant_keeps_the_peak() -> None:
    assert set(_curve(schedule=Schedule.constant)) == {1.0}


@pytest.mark.parametrize("schedule", [Schedule.linear, Schedule.cosine])
def test_linear_and_cosine_decrease_to_min_lr_ratio(schedule: Schedule) -> None:
    curve = _curve(schedule=schedule, min_lr_ratio=0.2)
    assert all(a > b for a, b in pairwise(curve))
    assert curve[STEPS // 2] == pytest.approx(0.6)  # both are half-way between 1 and 0.2 here
    assert 0.2 < curve[-1] < 0.21
    assert learning_rate(OptimConfig(lr=1.0, schedule=schedule, min_lr_ratio=0.2), STEPS, STEPS) == pytest.approx(0.2)


def test_linear_and_cosine_have_different_curves() -> None:
    assert _curve(schedule=Schedule.linear)[25] == pytest.approx(0.75)
    assert _curve(schedule=Schedule.cosine)[25] == pytest.approx(0.8536, abs=1e-4)


def test_wsd_is_constant_and_then_falls_linearly() -> None:
    curve = _curve(schedule=Schedule.wsd, decay_steps=20)
    assert set(curve[:81]) == {1.0}
    assert curve[90] == pytest.approx(0.5)
    assert curve[99] == pytest.approx(0.05)
