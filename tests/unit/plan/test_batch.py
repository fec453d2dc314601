"""The batch arithmetic."""

import itertools
import re

import pytest

from ftdist.base.errors import ConfigError
from ftdist.config.schema import BatchConfig
from ftdist.plan.batch import plan_batch, plan_resumed


@pytest.mark.parametrize(
    ("micro", "ranks", "total", "accum"), [(1, 1, 1, 1), (2, 4, 64, 8), (1, 2, 8, 4), (3, 1, 9, 3)]
)
def test_accumulation_is_derived(micro: int, ranks: int, total: int, accum: int) -> None:
    plan = plan_batch(BatchConfig(global_batch_size=total, micro_batch_size=micro), ranks, 16)
    assert plan.grad_accum_steps == accum
    assert plan.global_batch_size == total
    assert plan.tokens_per_step == total * 16
    assert f"{total * 16:,} tokens" in plan.describe()
    assert plan.describe().startswith("1 row a step (" if total == 1 else f"{total} rows a step (")


def test_the_arithmetic_is_one_line() -> None:
    two, one = plan_batch(BatchConfig(4, 2), 2, 512), plan_batch(BatchConfig(3, 1), 1, 8)
    assert (
        two.describe()
        == "4 rows a step (2 per rank × 1 accumulation step × 2 ranks) × 512 tokens = 2,048 tokens a step"
    )
    assert one.describe() == "3 rows a step (1 per rank × 3 accumulation steps × 1 rank) × 8 tokens = 24 tokens a step"


@pytest.mark.parametrize(("total", "near"), [(10, "8 or 12"), (3, "4"), (5, "4 or 8")])
def test_a_global_batch_that_is_not_divisible_names_the_nearest(total: int, near: str) -> None:
    with pytest.raises(ConfigError) as error:
        plan_batch(BatchConfig(global_batch_size=total, micro_batch_size=2), 2, 16)
    assert f"batch.global_batch_size={total} is not divisible" in str(error.value)
    assert f"batch.global_batch_size={near}" in error.value.fix


def test_an_accumulation_that_is_set_must_agree() -> None:
    assert plan_batch(BatchConfig(8, 1, 4), 2, 16).grad_accum_steps == 4
    with pytest.raises(ConfigError, match="grad_accum_steps=3"):
        plan_batch(BatchConfig(8, 1, 3), 2, 16)


@pytest.mark.parametrize(
    ("rows", "micro", "ranks", "fix"),
    [
        (12, 1, 5, "6 ranks (launch.nproc_per_node=6)"),
        (8, 4, 4, "batch.micro_batch_size=2, or 2 ranks (launch.nproc_per_node=2)"),
        (4, 3, 1, "batch.micro_batch_size=2"),
        (4, 5, 1, "batch.micro_batch_size=4"),
        (4, 3, 3, "2 ranks (launch.nproc_per_node=2) with batch.micro_batch_size=2"),
    ],
)
def test_a_resume_that_does_not_divide_names_the_nearest_that_does(rows: int, micro: int, ranks: int, fix: str) -> None:
    found = (
        f"keeps batch.global_batch_size={rows}, which is not divisible by micro_batch_size × ranks = {micro} × {ranks} "
    )
    with pytest.raises(ConfigError, match=found) as error:
        plan_resumed(BatchConfig(global_batch_size=rows, micro_batch_size=micro), ranks, 16)
    assert error.value.fix == fix


@pytest.mark.parametrize(
    ("rows", "ranks", "fix"),
    [
        (1, 2, "1 rank (launch.nnodes=1 launch.nproc_per_node=1)"),
        (12, 10, "12 ranks (launch.nproc_per_node=6)"),
        (9, 6, "3 ranks (launch.nnodes=1 launch.nproc_per_node=3)"),
    ],
)
def test_the_ranks_that_divide_are_those_of_two_machines(rows: int, ranks: int, fix: str) -> None:
    with pytest.raises(ConfigError) as error:
        plan_resumed(BatchConfig(global_batch_size=rows, micro_batch_size=1), ranks, 16, nnodes=2)
    assert error.value.fix == fix


def test_every_resume_is_planned_or_refused_with_a_choice() -> None:
    for rows, micro, ranks in itertools.product(range(1, 13), range(1, 14), range(1, 7)):
        batch = BatchConfig(global_batch_size=rows, micro_batch_size=micro)
        if rows % (micro * ranks) == 0:
            assert plan_resumed(batch, ranks, 16).global_batch_size == rows
            continue
        with pytest.raises(ConfigError) as error:
            plan_resumed(batch, ranks, 16)
        for choice in error.value.fix.split(", or "):
            named = dict(re.findall(r"(micro_batch_size|nproc_per_node)=(\d+)", choice))
            batch.micro_batch_size = int(named.get("micro_batch_size", micro))
            assert plan_resumed(batch, int(named.get("nproc_per_node", ranks)), 16).global_batch_size == rows
            batch.micro_batch_size = micro
