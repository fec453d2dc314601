"""The steps of a run."""

import pytest

from ftdist.base.errors import ConfigError
from ftdist.config.schema import RunConfig
from ftdist.plan.run_length import num_steps
from ftdist.plan.warmup import fit_schedule


def config(epochs: float | None = None, max_steps: int | None = None, global_batch_size: int = 4) -> RunConfig:
    made = RunConfig()
    made.train.epochs, made.train.max_steps = epochs, max_steps
    made.batch.global_batch_size = global_batch_size
    return made


@pytest.mark.parametrize(
    ("epochs", "rows", "global_batch_size", "steps"),
    [
        (1.0, 8, 4, 2),
        (1.0, 9, 4, 3),  # the last step takes rows of the next epoch
        (2.0, 9, 4, 5),  # 18 rows: counted over both epochs, not 3 steps in each
        (0.5, 100, 8, 7),
        (1.0, 3, 8, 1),
        (1.1, 100, 10, 11),  # exact: in floats, 1.1 × 100 is more than 110
        (0.07, 100, 7, 1),
    ],
)
def test_steps_of_a_run_that_counts_epochs(epochs: float, rows: int, global_batch_size: int, steps: int) -> None:
    assert num_steps(config(epochs=epochs, global_batch_size=global_batch_size), rows) == steps


def test_a_run_that_began_with_a_step_more_keeps_its_length() -> None:
    """Earlier versions computed in floats: 12 steps instead of 11."""
    begun = config(epochs=1.1, global_batch_size=10)
    assert num_steps(begun, 100, recorded=12) == 12
    assert num_steps(begun, 100, recorded=11) == num_steps(begun, 100) == 11
    assert num_steps(begun, 100, recorded=50) == 11, "the data has changed"


def test_max_steps_is_the_length_whatever_the_rows() -> None:
    assert num_steps(config(max_steps=10), rows=1) == num_steps(config(max_steps=10), rows=10**9) == 10


def test_a_schedule_that_does_not_fit_is_refused_with_the_numbers() -> None:
    short = config(epochs=1.0)
    short.optim.warmup_steps = 5
    fit_schedule(short, rows=20)
    short.optim.decay_steps = 1
    with pytest.raises(ConfigError) as error:
        fit_schedule(short, rows=20)
    assert error.value.found == (
        "optim.warmup_steps + optim.decay_steps = 6, but the run has 5 steps (20 rows × epochs=1 / 4 rows per step)"
    )
    assert error.value.fix == "optim.warmup_steps=0"
    fit_schedule(short, rows=21)


def test_a_decay_that_does_not_fit_is_named_without_a_warmup_that_may_be_shortened() -> None:
    short = config(epochs=1.0)
    short.optim.warmup_steps, short.optim.decay_steps, short.optim.shorten_warmup = 5, 6, True
    with pytest.raises(ConfigError) as error:
        fit_schedule(short, rows=20)
    assert error.value.found.startswith("optim.decay_steps = 6, but the run has 5 steps (")
    assert error.value.fix == "optim.decay_steps=1"
