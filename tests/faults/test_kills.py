"""All ranks are killed at any moment of a run. Resumed, it ends bit for bit as the run that nobody interrupted.

The ranks are forked. tests/e2e/test_kill.py kills a run together with its launcher and torchrun.
"""

import platform
import random
import time
from pathlib import Path
from typing import Tuple

import pytest

from ftdist.run.rundir import RunDir
from tests.faults.group import at_step
from tests.faults.table import fault
from tests.helpers.group import start_attempt
from tests.helpers.kills import SCHEDULE, draw_kill
from tests.helpers.runs import assert_same
from tests.helpers.tiny import freeze_tiny, save_tiny_model, tiny_config

WORLD = 2
SETTINGS = (*SCHEDULE, "batch.micro_batch_size=1")  # four micro-steps a step
FP32, BF16 = "fp32", "bf16"
FULL: Tuple[str, ...] = ()
LORA = ("method.kind=lora", "method.r=4", "method.lora_dropout=0.2", "optim.lr=1e-2")
slow = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with dropout, so that the random state of each rank matters."""
    folder = tmp_path_factory.mktemp("kills")
    save_tiny_model(folder / "model", attention_dropout=0.1)
    return folder


def sleep() -> None:
    time.sleep(3600)


@pytest.mark.parametrize(
    ("stage", "precision", "moment", "method"),
    [
        (0, BF16, "at a step", FULL),
        pytest.param(1, BF16, "while a checkpoint is written", FULL, marks=slow),
        pytest.param(1, FP32, "at a step", FULL, marks=slow),
        pytest.param(2, BF16, "at a step", FULL, marks=slow),
        pytest.param(2, FP32, "after the last checkpoint", FULL, marks=slow),
        pytest.param(3, BF16, "after the last checkpoint", FULL, marks=slow),
        (3, FP32, "while a checkpoint is written", FULL),
        pytest.param(3, BF16, "at a step", LORA, marks=slow),
        (2, BF16, "while a checkpoint is written", LORA),
        pytest.param(1, FP32, "after the last checkpoint", LORA, marks=slow),
    ],
    ids=lambda value: "" if value == FULL else "lora" if value == LORA else None,
)
@fault(
    "training",
    "all ranks are killed",
    "SIGKILL before the first checkpoint, then at a random step, while a checkpoint is "
    "written, or after the last one; ZeRO 0 to 3, fp32 and bf16, with dropout; full fine-tuning and LoRA",
    "resumed, the run is bit for bit equal to the undisturbed one: metrics, samples, weights, checkpoints",
)
def test_a_killed_run_ends_as_an_undisturbed_one(
    folder: Path, tmp_path: Path, stage: int, precision: str, moment: str, method: Tuple[str, ...]
) -> None:
    seed = random.randrange(10**6)
    draw = random.Random(seed)
    early, kill = draw.randint(0, 2), draw_kill(moment, draw)
    print(f"seed {seed}: killed before step {early + 1}, then {kill.text}")
    config = tiny_config(folder, *SETTINGS, f"zero.stage={stage}", f"train.precision={precision}", *method)
    reference, run = (freeze_tiny(config, tmp_path / name, WORLD) for name in ("reference", "run"))
    done = dict.fromkeys(range(WORLD), 0)
    assert start_attempt(reference, WORLD).wait() == done

    struck = tmp_path / "struck"
    first = start_attempt(run, WORLD, arm={1: at_step(early, sleep, struck)})
    first.wait_until(struck.exists)
    first.kill()
    assert not run.published_checkpoints()
    # A killed process may leave such a file while it replaces the status. The next attempt must remove it.
    run.status.with_name(f".{run.status.name}.{platform.node()}.{first.pids[0]}.00000000").write_text("{")

    second = start_attempt(run, WORLD, attempt=1)
    second.wait_until(lambda: kill.reached(run))
    time.sleep(kill.delay_s)
    second.kill()
    assert run.read_status()["state"] != "done", "the run was over before it was killed"

    assert start_attempt(run, WORLD, attempt=2).wait() == done
    assert "resumed after step" in RunDir(run.path).log_file(0, 2).read_text()
    assert_same(run, reference)
