"""The batch algebra."""

import pytest

from ftdist.batching import plan_batch
from ftdist.config import BatchConfig
from ftdist.errors import ConfigError


@pytest.mark.parametrize(
    ("micro", "ranks", "total", "accum"), [(1, 1, 1, 1), (2, 4, 64, 8), (1, 2, 8, 4), (3, 1, 9, 3)]
)
def test_accumulation_is_derived(micro: int, ranks: int, total: int, accum: int) -> None:
    plan = plan_batch(BatchConfig(global_batch_size=total, micro_batch_size=micro), ranks, 16)
    assert plan.grad_accum_steps == accum
    assert plan.global_batch_size == total
    assert plan.tokens_per_step == total * 16
    assert f"{total} rows" in plan.describe() and f"{total * 16:,} tokens" in plan.describe()


@pytest.mark.parametrize(("total", "near"), [(10, "8 or 12"), (3, "4"), (5, "4 or 8")])
def test_not_divisible_names_the_nearest(total: int, near: str) -> None:
    with pytest.raises(ConfigError) as error:
        plan_batch(BatchConfig(global_batch_size=total, micro_batch_size=2), 2, 16)
    assert f"batch.global_batch_size={total} is not divisible" in str(error.value)
    assert f"batch.global_batch_size={near}" in error.value.fix


def test_a_given_accumulation_must_agree() -> None:
    assert plan_batch(BatchConfig(8, 1, 4), 2, 16).grad_accum_steps == 4
    with pytest.raises(ConfigError, match="grad_accum_steps=3"):
        plan_batch(BatchConfig(8, 1, 3), 2, 16)
