"""kill -9 and resume where gradients (stage 2) and parameters (stage 3) are sharded; with dropout, which draws from the
random state of each rank."""

import random
from pathlib import Path

import pytest

from tests.e2e.kill9 import DROPOUT, killed_and_resumed

pytestmark = pytest.mark.timeout(600)  # four runs each, which other tests slow down
FP32, BF16 = "train.precision=fp32", "train.precision=bf16"


@pytest.mark.parametrize(
    ("stage", "precision", "moment"),
    [
        (2, BF16, "at a step"),
        (3, BF16, "after the last checkpoint"),
        pytest.param(2, FP32, "at a step", marks=pytest.mark.slow),
        pytest.param(3, FP32, "at a step", marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_ends_as_if_it_had_not_been(stage: int, precision: str, moment: str, tmp_path: Path) -> None:
    overrides = (f"zero.stage={stage}", precision, DROPOUT, "track=disabled")
    killed_and_resumed(tmp_path, overrides, moment, random.randrange(10**6))
