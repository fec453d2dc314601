"""kill -9 and resume where weights are whole on every rank, and optimizer states too (stage 0) or not (stage 1)."""

import random
from pathlib import Path

import pytest

from tests.e2e.kill9 import DROPOUT, MOMENTS, killed_and_resumed

pytestmark = pytest.mark.timeout(600)  # four runs each, which other tests slow down
FP32, BF16 = "train.precision=fp32", "train.precision=bf16"


@pytest.mark.parametrize(
    ("stage", "precision", "moment"),
    [
        (0, FP32, "at a step"),
        (1, BF16, "while a checkpoint is written"),
        pytest.param(0, BF16, "at a step", marks=pytest.mark.slow),
        pytest.param(1, FP32, "at a step", marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_ends_as_if_it_had_not_been(stage: int, precision: str, moment: str, tmp_path: Path) -> None:
    seed = random.randrange(10**6)
    tracked = "track=offline" if stage == 0 else "track=disabled"  # once with W&B, which is killed too
    killed_and_resumed(tmp_path, (f"zero.stage={stage}", precision, tracked), moment, seed)


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_at_every_moment(stage: int, moment: str, tmp_path: Path) -> None:
    overrides = (f"zero.stage={stage}", BF16, DROPOUT, "track=disabled")
    killed_and_resumed(tmp_path, overrides, moment, random.randrange(10**6))
