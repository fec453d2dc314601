"""kill -9 of a run with its launcher, torchrun and W&B: resumed, it ends as the run that nobody interrupted.

tests/faults/test_kills.py does the same to forked ranks in every ZeRO stage.
"""

import random
import time
from pathlib import Path
from typing import Tuple

import pytest

from ftdist.run.rundir import RunDir
from tests.helpers.cli import kill_tree, start, succeed, wait_until
from tests.helpers.kills import MOMENTS, SCHEDULE, draw_kill
from tests.helpers.runs import SMOKE, assert_same, newest_step, reference_run

pytestmark = pytest.mark.timeout(600)  # four runs each, which other tests slow down
# Two micro-steps a step.
SETTINGS = (*SMOKE, *SCHEDULE, "batch.global_batch_size=4", "data.max_heldout_documents=32")
DROPOUT = "model.config.attention_dropout=0.1"
FP32, BF16 = "train.precision=fp32", "train.precision=bf16"
PLAIN, TRACKED = ("track=disabled",), ("track=offline",)


def killed_and_resumed(folder: Path, overrides: Tuple[str, ...], moment: str) -> None:
    """Kill a run before its first checkpoint, kill its second attempt at ``moment``, and let the third finish."""
    seed = random.randrange(10**6)
    draw = random.Random(seed)
    early, kill = draw.randint(0, 1), draw_kill(moment, draw)
    print(f"seed {seed}: killed at step {early}, then {kill.text}")
    reference = reference_run(*SETTINGS, *overrides)  # without W&B
    run = RunDir(folder / "run")

    first = start("train", *SETTINGS, *overrides, f"run_dir={run.path}", cwd=folder)
    wait_until(first, lambda: newest_step(run) >= early)
    kill_tree(first)
    assert not run.published_checkpoints()

    second = start("resume", run.path)
    wait_until(second, lambda: kill.reached(run), kill.delay_s)
    kill_tree(second)
    killed = time.time()
    assert run.read_status()["state"] != "done", "the run was over before it was killed"

    for rest in (".export.1", ".status.json.1"):  # what a kill in the middle of these leaves
        (run.path / rest).mkdir()
    third = succeed("resume", run.path)
    assert "resumed after step" in third.out
    again = [record["time"] - killed for record in run.read_metrics() if record["time"] > killed]
    if again:  # not where only the export was left to do
        print(f"the next record came {min(again):.1f} s after the kill")
    assert_same(run, reference)


@pytest.mark.slow  # tests/faults kills forked ranks, and in test_soak.py and test_signals.py launchers with their ranks
@pytest.mark.parametrize(
    ("stage", "precision", "more"),
    [
        (0, FP32, TRACKED),
        (0, BF16, TRACKED),
        (1, FP32, PLAIN),
        (2, FP32, (*PLAIN, DROPOUT)),
        (3, FP32, (*PLAIN, DROPOUT)),
    ],
)
def test_a_killed_run_ends_as_an_undisturbed_one(
    stage: int, precision: str, more: Tuple[str, ...], tmp_path: Path
) -> None:
    killed_and_resumed(tmp_path, (f"zero.stage={stage}", precision, *more), "at a step")


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_killed_run_ends_as_an_undisturbed_one_at_every_moment(stage: int, moment: str, tmp_path: Path) -> None:
    killed_and_resumed(tmp_path, (f"zero.stage={stage}", BF16, DROPOUT, *PLAIN), moment)
