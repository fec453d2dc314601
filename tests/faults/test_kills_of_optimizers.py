"""A rank of a run with each optimizer but AdamW is killed: resumed, it ends as the run that nobody interrupted.

On other ranks and at another stage it continues with the same losses, or is refused. tests/faults/test_kills.py does
the same with AdamW.
"""

import os
import signal
from pathlib import Path
from typing import Any, List, NamedTuple, Optional, Tuple

import pytest

from ftdist.config.frozen import dump_config
from ftdist.run.rundir import RunDir
from tests.faults.table import fault
from tests.helpers.group import start_attempt
from tests.helpers.kills import SCHEDULE
from tests.helpers.runs import assert_same, copy_of, newest_step
from tests.helpers.tiny import freeze_tiny, make_run_dir, save_tiny_model, tiny_config

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
WORLD, WAIT_S = 2, 400.0
SETTINGS = (*SCHEDULE, "batch.micro_batch_size=2")
BF16, FP32 = "train.precision=bf16", "train.precision=fp32"
LORA = (FP32, "method.kind=lora", "method.r=4")


class Case(NamedTuple):
    optimizer: str
    stage: int
    rate: float
    more: Tuple[str, ...]
    elsewhere: Optional[Tuple[int, int]]
    """Ranks and stage of a resume elsewhere; None if the states cannot be cut."""


CASES = [
    Case("lion", 2, 3e-4, (BF16,), (1, 3)),
    Case("lion", 3, 3e-3, LORA, (4, 1)),
    Case("sgd", 3, 0.1, (BF16,), (4, 1)),
    Case("sgd", 1, 0.1, (FP32, "optim.momentum=0"), (1, 0)),
    Case("adafactor", 0, 1e-2, (BF16,), (1, 0)),
    Case("adafactor", 0, 1e-2, LORA, (4, 0)),
    Case("muon", 0, 1e-3, (BF16,), (4, 0)),
    Case("muon", 0, 1e-2, LORA, (1, 0)),
    Case("adamw_8bit", 0, 1e-3, (BF16,), (1, 0)),
    Case("adamw_8bit", 2, 1e-3, (BF16,), None),
    Case("adamw_8bit", 3, 1e-3, (FP32,), None),
]


def name_of(case: Case) -> str:
    return "-".join([case.optimizer, f"stage{case.stage}", *(word.split("=")[1] for word in case.more)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models. With dropout, each number of ranks draws other masks, so a resume on other ranks has other losses."""
    import peft  # noqa: F401 - so that no forked rank has to import it

    folder = tmp_path_factory.mktemp("kills")
    save_tiny_model(folder / "model")
    save_tiny_model(folder / "dropout", attention_dropout=0.1)
    return folder


@pytest.mark.parametrize("case", CASES, ids=name_of)
@fault(
    "training",
    "a rank is killed, with each optimizer",
    "SIGKILL of rank 1 of 2 after step 4 of 10; Lion, SGD, Adafactor, Muon and AdamW in 8 bits, fp32 and bf16, LoRA",
    "resumed, the run is bit for bit equal to the undisturbed one; on 1 or 4 ranks at another stage it has the same "
    "losses, or is refused (8-bit states that ZeRO has cut)",
)
def test_a_run_whose_rank_was_killed_ends_as_an_undisturbed_one(case: Case, folder: Path, tmp_path: Path) -> None:
    config = tiny_config(
        folder, *SETTINGS, f"optim.optimizer={case.optimizer}", f"zero.stage={case.stage}", f"optim.lr={case.rate}",
        f"model.path={folder / ('model' if case.elsewhere else 'dropout')}", *case.more,
    )  # fmt: skip
    reference, run = (freeze_tiny(config, tmp_path / name, WORLD) for name in ("reference", "run"))
    assert start_attempt(reference, WORLD).wait(WAIT_S) == {0: 0, 1: 0}

    first = start_attempt(run, WORLD)
    first.wait_until(lambda: newest_step(run) >= 4 and bool(run.published_checkpoints()), WAIT_S)
    os.kill(first.pids[1], signal.SIGKILL)
    codes = first.wait(WAIT_S)
    assert codes[1] == -signal.SIGKILL and codes[0] > 0
    elsewhere, before = copy_of(run, tmp_path / "elsewhere"), run.find_checkpoint("last").name.split("-")[-1]

    assert start_attempt(run, WORLD, attempt=1).wait(WAIT_S) == {0: 0, 1: 0}
    assert f"resumed after step {int(before)}\n" in run.log_file(0, 1).read_text()
    assert_same(run, reference)
    losses = losses_of(run)
    assert losses[-1] < losses[0]

    world_size, stage = case.elsewhere or (1, case.stage)
    codes = _resume_on(elsewhere, config, world_size, stage)
    if case.elsewhere is None:
        assert codes[0] > 0 and not elsewhere.checkpoint(10).exists()
        error = next(elsewhere.logs.glob("rank-00000.attempt-1.error.json")).read_text()
        assert "8-bit states" in error and "cannot be divided" in error
        return
    assert set(codes.values()) == {0}
    assert f"resumed after step {int(before)}\n" in elsewhere.log_file(0, 1).read_text()
    assert losses_of(elsewhere) == pytest.approx(losses, rel=1e-3 if BF16 in case.more else 1e-5)


def _resume_on(run: RunDir, config: Any, world_size: int, stage: int) -> Any:
    """Resume a run on another number of ranks at another stage. Returns the exit code of each rank."""
    config.zero.stage = stage
    run.config.write_text(dump_config(config))
    make_run_dir(config, run.path, world_size)
    return start_attempt(run, world_size, attempt=1).wait(WAIT_S)


def losses_of(run: RunDir) -> List[float]:
    """Return the training loss of each step."""
    records = [record for record in run.read_metrics() if "train/loss" in record]
    assert [record["step"] for record in records] == list(range(1, len(records) + 1))
    return [record["train/loss"] for record in records]
