"""A bad loss or gradient on one rank: the step is skipped. Several in a row: the run rolls back and skips the data."""

import hashlib
import os
import signal
from pathlib import Path
from typing import Any, Dict, List, Tuple

import pytest

from ftdist.base.errors import TrainError
from ftdist.config.frozen import load_config
from ftdist.config.schema import Precision
from ftdist.run.rundir import RunDir
from ftdist.verify.reference import Reference, read_rows
from tests.faults.bad_batches import make_batches_bad
from tests.faults.table import fault
from tests.helpers.ranks import run_ranks
from tests.helpers.tiny import freeze_tiny, make_run_dir, save_tiny_model, tiny_config
from tests.helpers.training import assemble, start

STEPS = 5
SETTINGS = (f"train.max_steps={STEPS}", "optim.lr=1e-3", "optim.weight_decay=0.1", "optim.max_grad_norm=0.5",
            "train.num_samples=0", "train.export=false", "batch.micro_batch_size=2")  # fmt: skip
Outcome = Tuple[List[Any], str]


def _state(training: Any) -> str:
    """Hash every weight, master weight, moment and step count that this rank holds."""
    import torch

    digest = hashlib.sha256()

    def add(tensor: torch.Tensor) -> None:
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())

    for parameter in training.engine.module.parameters():
        add(getattr(parameter, "ds_tensor", parameter))
    for held, states in training.engine.optimizer.state.items():
        add(held)
        for name in ("step", "exp_avg", "exp_avg_sq"):
            add(states[name])
    return digest.hexdigest()


def _steps(config: Any, run: RunDir, at: int, kind: str) -> Outcome:
    """Run with a batch ``at`` that is bad on rank 1, or that is left out if ``kind`` is "left out".

    Returns what was bad about each step (or None), and the hash of the final state.
    """
    from ftdist.train import loop

    training = assemble(config, run.path, start(config))
    if kind != "left out" and training.ranks.rank == 1:
        make_batches_bad(training, {at: kind})
    said: List[Any] = []
    for step in range(STEPS):
        if kind == "left out" and step == at:
            continue
        training.state.grad_norms = [1.0 + number / 10 for number in range(8)] if kind == "spike" else []
        result = loop.train_step(training, step)
        said.append(result.bad)
    state = _state(training)
    training.engine.destroy()
    return said, state


def _compare(configs: List[Any], folder: Path) -> List[Tuple[Any, Dict[str, Outcome]]]:
    found = []
    for number, config in enumerate(configs):
        # The first step at two stages and the third at the others: the precision decides which.
        at = 2 * ((config.zero.stage + (config.train.precision is Precision.bf16)) % 2)
        run = RunDir(folder / f"run-{number}")
        kinds = ("left out", "loss", "gradient") if at == 0 else ("left out", "loss", "gradient", "spike")
        found.append(((config.zero.stage, config.train.precision.name, at),
                      {kind: _steps(config, run, at, kind) for kind in kinds}))  # fmt: skip
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    save_tiny_model(folder / "model")
    return folder


@pytest.mark.parametrize("precision", ["bf16", pytest.param("fp32", marks=pytest.mark.slow)])
@fault(
    "training",
    "the loss or the gradient norm on one rank is not finite, or jumps suddenly",
    "the value or the gradient of the loss on rank 1 is multiplied by NaN, infinity or "
    "10,000; ZeRO 0 to 3, fp32 and bf16",
    "all ranks skip the update: weights, moments and step counts are bit for bit those of a "
    "run that never took the step",
)
def test_a_bad_step_changes_nothing(folder: Path, tmp_path: Path, precision: str) -> None:
    """Weights, moments and step counts are bit for bit those of a run that never saw the batch, in every stage."""
    configs = [
        tiny_config(folder, *SETTINGS, f"zero.stage={stage}", f"train.precision={precision}", "train.grad_spike_z=100",
                    "train.grad_spike_window=8")
        for stage in range(4)
    ]  # fmt: skip
    freeze_tiny(configs[0], tmp_path / "run", 2)
    for number, config in enumerate(configs):
        make_run_dir(config, tmp_path / f"run-{number}", 2)
    everyone = run_ranks(_compare, 2, configs, tmp_path)
    for rank, found in enumerate(everyone):
        for (case, kinds), (_, first_ranks) in zip(found, everyone[0], strict=True):
            _, expected = kinds.pop("left out")
            for kind, (said, state) in kinds.items():
                where = f"rank {rank}, stage, precision, step {case}, {kind}"
                assert [number for number, bad in enumerate(said) if bad] == [case[2]], f"{where}: {said}"
                assert said == first_ranks[kind][0], where
                assert state == expected, f"{where}: something of the bad step is left"


ROLLING = (*SETTINGS, "train.max_steps=8", "train.checkpoint_every=2", "train.max_bad_steps=2", "optim.warmup_steps=2",
           "data.heldout_share=0", "data.max_heldout_documents=null", "train.log_every=3")  # fmt: skip


def _whole_run(path: Path, bad: Dict[int, str], dies_at: int = -1, stops_at: int = -1) -> str:
    """Start or resume a run with bad batches on rank 1. Returns how it ended.

    Every rank dies before batch ``dies_at``. Rank 0 receives SIGTERM before batch ``stops_at``.
    """
    from ftdist.train import loop

    config = load_config(RunDir(path).config)
    training = assemble(config, path, start(config))
    if training.ranks.rank == 1:
        make_batches_bad(training, bad)
    train_step = loop.train_step

    def mortal_step(training: Any, index: int) -> Any:
        if training.state.batch_index(index) == dies_at:
            raise KeyboardInterrupt("dies here")
        if training.state.batch_index(index) == stops_at and training.ranks.first:
            os.kill(os.getpid(), signal.SIGTERM)
        return train_step(training, index)

    loop.train_step = mortal_step
    try:
        return loop.train(training)
    except (TrainError, KeyboardInterrupt) as error:
        return str(error)


def _record(run: RunDir) -> List[Dict[str, Any]]:
    timed = ("time", "perf/", "mem/")
    return [{name: v for name, v in record.items() if not name.startswith(timed)} for record in run.read_metrics()]


def _frozen(folder: Path, path: Path, *more: str) -> Tuple[Any, RunDir]:
    config = tiny_config(folder, *ROLLING, *more)
    return config, freeze_tiny(config, path, 2)


def _oracle(config: Any, data: Path, order: List[int]) -> List[Dict[str, float]]:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(config.model.path, dtype=torch.float32)
    reference, rows = Reference(model, config.optim, config.train.max_steps), read_rows(data / "train")
    size = config.batch.global_batch_size
    steps = range(len(order) // size)
    return [reference.step(s, [d for row in order[s * size : (s + 1) * size] for d in rows[row]]) for s in steps]


@fault(
    "training",
    "bad steps in a row",
    "two batches that are always bad, with train.max_bad_steps=2",
    "the run returns to its last checkpoint and skips the data, as plain PyTorch trains "
    "without those batches. Stopped between them, or killed before or after the next "
    "checkpoint, and resumed, it ends the same",
)
def test_bad_steps_in_a_row_roll_back_and_skip_the_data(folder: Path, tmp_path: Path) -> None:
    """As plain PyTorch trains where those two batches are not in the data; and stopped among them, or killed before or
    after the next checkpoint, and resumed, it comes to the same, record and all."""
    from ftdist.data.row_order import row_ids
    from ftdist.run.prepared import data_folder

    bad = {4: "loss", 5: "gradient"}
    config, run = _frozen(folder, tmp_path / "run")
    assert run_ranks(_whole_run, 2, run.path, bad) == ["done"] * 2
    record = _record(run)
    back = next(r for r in record if "train/rolled_back_from" in r)
    size, data = config.batch.global_batch_size, data_folder(config)
    order = row_ids(config.seed, len(read_rows(data / "train")), 0, 10 * size).tolist()
    assert (back["step"], back["train/rolled_back_from"], back["train/batches_left_out"]) == (5, 6, [4, 5])
    assert back["train/bad_rows"] == order[4 * size : 6 * size]
    (expected,) = run_ranks(_oracle, 1, config, data, order[: 4 * size] + order[6 * size :])
    steps = {r["step"]: r for r in record if "train/loss" in r}
    assert sorted(steps) == [3, 6, 8], "every third step, and the last; those of before the roll-back are forgotten"
    for step, r in steps.items():
        for name in ("loss", "grad_norm"):
            assert abs(r[f"train/{name}"] / expected[step - 1][name] - 1) < 1e-5, (step, name)
    for end, at in (("dies here", 7), ("dies here", 8), ("preempted", 4)):
        _, again = _frozen(folder, tmp_path / f"{end}-{at}")
        assert run_ranks(_whole_run, 2, again.path, bad, *((at, -1) if end == "dies here" else (-1, at))) == [end] * 2
        assert end != "preempted" or again.published_checkpoints()[-1].name == "step-00000004"
        assert run_ranks(_whole_run, 2, again.path, bad) == ["done"] * 2
        assert _record(again) == record, f"{end} at batch {at}"
        for name in ("step-00000006", "step-00000008"):
            assert _weights(again, name) == _weights(run, name), f"{end} at batch {at}, {name}"


@fault(
    "training",
    "a stop before bad steps in a row",
    "SIGTERM between two scheduled checkpoints, then two bad batches, with train.keep_checkpoints=1",
    "resumed, and killed again after the rollback, the run rolls back as far as an "
    "undisturbed one and is bit for bit equal to it",
)
def test_a_stop_does_not_change_how_far_a_run_rolls_back(folder: Path, tmp_path: Path) -> None:
    bad, settings = {5: "loss", 6: "gradient"}, ("train.checkpoint_every=4", "train.keep_checkpoints=1")
    (_, run), (_, again) = _frozen(folder, tmp_path / "run", *settings), _frozen(folder, tmp_path / "again", *settings)
    assert run_ranks(_whole_run, 2, run.path, bad) == ["done"] * 2
    assert run_ranks(_whole_run, 2, again.path, bad, -1, 4) == ["preempted"] * 2
    assert run_ranks(_whole_run, 2, again.path, bad, 8) == ["dies here"] * 2  # after it has gone back
    assert [path.name for path in again.published_checkpoints()] == ["step-00000004", "step-00000005"]
    assert run_ranks(_whole_run, 2, again.path, bad) == ["done"] * 2
    assert _record(again) == _record(run) and any(r.get("train/batches_left_out") == [4, 6] for r in _record(run))
    assert [path.name for path in again.published_checkpoints()] == ["step-00000008"]
    assert _weights(again, "step-00000008") == _weights(run, "step-00000008")


def _weights(run: RunDir, checkpoint: str) -> Dict[str, str]:
    from ftdist.base.json_files import read_json

    files = read_json(run.checkpoints / checkpoint / "manifest.json")["files"]
    return {name: entry["sha256"] for name, entry in files.items()}


@fault(
    "training",
    "one bad step",
    "one batch of a run is bad",
    "metrics.jsonl names the reason and the rows of the global batch; nothing else changes",
)
def test_one_bad_step_is_logged_with_its_rows(folder: Path, tmp_path: Path) -> None:
    _, run = _frozen(folder, tmp_path / "run")
    assert run_ranks(_whole_run, 2, run.path, {1: "loss"}) == ["done"] * 2
    records = {r["step"]: r for r in _record(run) if "train/loss" in r}
    assert sorted(records) == [2, 3, 6, 8] and records[2]["train/loss"] == "nan"
    assert records[2]["train/bad"] == "the loss is nan" and len(set(records[2]["train/bad_rows"])) == 8
    assert not any("train/bad" in records[step] for step in (3, 6, 8))


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ((), "2 consecutive bad steps (5 to 6: the loss is nan) after 2 rollbacks; training rows"),
        (("train.max_rollbacks=0",), "2 consecutive bad steps (5 to 6: the loss is nan) with train.max_rollbacks=0"),
        (
            ("train.checkpoint_every=null",),
            "(5 to 6: the loss is nan), and there is no checkpoint to roll back to; training rows",
        ),
    ],
)
@fault(
    "training",
    "bad steps without end",
    "every batch from the fifth on is bad",
    "after train.max_rollbacks the run fails and names steps and rows; without a checkpoint it fails at once",
)
def test_the_run_fails_after_max_rollbacks_and_names_the_steps(
    folder: Path, tmp_path: Path, settings: Tuple[str, ...], found: str
) -> None:
    _, run = _frozen(folder, tmp_path / "run", *settings)
    said = run_ranks(_whole_run, 2, run.path, dict.fromkeys(range(4, 20), "loss"))
    assert found in said[0] and said[0] == said[1]
    backs = [r["train/batches_left_out"] for r in _record(run) if "train/rolled_back_from" in r]
    assert backs == ([] if settings else [[4, 7]]), "the second time from the same checkpoint covers the first"
    last = run.published_checkpoints()
    assert [path.name for path in last] == (
        [] if "train.checkpoint_every=null" in settings else ["step-00000002", "step-00000004"]
    )
