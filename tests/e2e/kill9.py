"""kill -9 of a whole run, resumed, against the same run uninterrupted."""

import random
import time
from pathlib import Path
from typing import Callable, Tuple

from ftdist.run.rundir import RunDir
from tests.helpers.cli import kill_tree, start, succeed, wait_until
from tests.helpers.runs import SMOKE, assert_same, finished_run, newest_step

MAX_STEPS = 10
# Two micro-steps a step; evaluations (4, 8, 10) and checkpoints (3, 6, 9, 10) fall on different steps.
SETTINGS = (*SMOKE, f"train.max_steps={MAX_STEPS}", "train.eval_every=4", "train.checkpoint_every=3",
            "batch.global_batch_size=4", "data.max_heldout_documents=32")  # fmt: skip
DROPOUT = "model.config.attention_dropout=0.1"

Moment = Callable[[RunDir], bool]


def at_step(step: int) -> Moment:
    return lambda run: newest_step(run) >= step


def while_saving(run: RunDir) -> bool:
    """A second checkpoint is being written."""
    return bool(run.published_checkpoints()) and any(run.checkpoints.glob(".tmp-*"))


def after_the_last_checkpoint(run: RunDir) -> bool:
    return run.checkpoint(MAX_STEPS).is_dir()


MOMENTS = {"at a step": None, "while a checkpoint is written": while_saving,
           "after the last checkpoint": after_the_last_checkpoint}  # fmt: skip


def killed_and_resumed(folder: Path, overrides: Tuple[str, ...], moment: str, seed: int) -> None:
    """Kill a run before its first checkpoint, kill its second attempt at ``moment``, let the third come to its end."""
    draw = random.Random(seed)
    reached, delay_s = MOMENTS[moment], 0.0
    if reached is None:
        step, delay_s = draw.randint(3, MAX_STEPS - 2), draw.uniform(0, 0.08)
        reached = at_step(step)
        moment = f"{delay_s * 1000:.0f} ms after step {step}"
    early = draw.randint(0, 1)
    print(f"seed {seed}: killed at step {early}, then {moment}")
    reference = finished_run(*SETTINGS, *overrides)
    run = RunDir(folder / "run")

    first = start("train", *SETTINGS, *overrides, f"run_dir={run.path}", cwd=folder)
    wait_until(first, lambda: at_step(early)(run))
    kill_tree(first)
    assert not run.published_checkpoints()

    second = start("resume", run.path)
    wait_until(second, lambda: bool(run.published_checkpoints()) and reached(run), delay_s)
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
