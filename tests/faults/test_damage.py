"""Damaged files of a checkpoint are found and named before anything is loaded, and an older checkpoint is used."""

import contextlib
import io
import shutil
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

import pytest

from ftdist.base.errors import CheckpointError
from ftdist.base.json_files import read_json
from ftdist.checkpoint.protocol import find_newest, verify_checkpoint, write_checkpoint
from ftdist.run.rundir import RunDir
from tests.faults.checkpoints import Alone, contained, contents, flip_one_bit
from tests.faults.table import fault
from tests.helpers.ranks import run_ranks
from tests.helpers.tiny import freeze_tiny, save_tiny_model, tiny_config
from tests.helpers.training import FIVE_STEPS, assemble, fingerprint, save, start, steps

WORLD = 2
FILES = (
    "manifest.json",
    "state.json",
    "hf/a.json",
    "hf/more/b.txt",
    "rank-00000.safetensors",
    "rank-00001.safetensors",
)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def two_steps(folder: Path) -> List[str]:
    """Write two checkpoints of two ranks."""
    import torch.distributed as dist

    from ftdist.checkpoint.protocol import RankAgreement

    dist.init_process_group("gloo")
    together, run = RankAgreement(), RunDir(folder)
    return [write_checkpoint(run, contents(step, 0.0, together.rank, WORLD), together) for step in (5, 10)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    run = RunDir(tmp_path_factory.mktemp("damage") / "run")
    run.checkpoints.mkdir(parents=True)
    assert run_ranks(two_steps, WORLD, run.path) == [["", ""]] * WORLD
    return run


@fault(
    "loading",
    "one bit of a file of the newest checkpoint is flipped, or a file is truncated or missing",
    "each file in turn: the file of every rank, the small files, the manifest",
    "found before anything is loaded; file and rank are named; the checkpoint is set aside "
    "and the previous one is used",
)
@pytest.mark.parametrize("damage", [flip_one_bit, cut, Path.unlink])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named_and_an_older_checkpoint_used(
    whole: RunDir, tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    run, notes = RunDir(shutil.copytree(whole.path, tmp_path / "run")), []
    newest = run.checkpoint(10)
    assert sorted(FILES) == sorted(str(path.relative_to(newest)) for path in newest.rglob("*") if path.is_file())
    assert contained(run) == [(5, 0), (10, 0)] and verify_checkpoint(newest) is None
    damage(newest / name)
    assert find_newest(run, Alone(), notes.append) == run.checkpoint(5)
    (note,) = notes
    assert "step-00000010" in note and name in note and "bad-step-00000010" in note
    if name.startswith("rank-"):
        assert f"of rank {int(name[5:10])} " in note
    assert contained(run) == [(5, 0)] and (run.checkpoints / "bad-step-00000010").is_dir()
    assert write_checkpoint(run, contents(10), Alone()) == "" and contained(run) == [(5, 0), (10, 0)]


@fault(
    "loading",
    "every checkpoint is damaged",
    "a bit is flipped in each",
    "the run fails with that message at every attempt; no checkpoint is deleted",
)
def test_resume_fails_if_every_checkpoint_is_damaged(whole: RunDir, tmp_path: Path) -> None:
    run, notes = RunDir(shutil.copytree(whole.path, tmp_path / "run")), []
    for path in run.published_checkpoints():
        flip_one_bit(path / FILES[-1])
    with pytest.raises(CheckpointError, match="step-00000010: rank-00001.safetensors of rank 1"):
        find_newest(run, Alone(), notes.append)
    assert len(notes) == 2
    with pytest.raises(CheckpointError, match="bad-step-00000010 was set aside, and there is no other"):
        find_newest(run, Alone(), notes.append)  # a restart must not begin at step 0
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["bad-step-00000005", "bad-step-00000010"]


def _damaged_resume(config: Any, path: Path, tmp: Path) -> Tuple[Dict[str, Any], str]:
    import torch.distributed as dist

    ranks = start(config)
    training = assemble(config, path, ranks)
    expected = []
    for _ in range(2):
        steps(training, 1)
        save(training)
        expected.append(fingerprint(training.engine))
    after = steps(training, 1)
    untouched, run = fingerprint(training.engine), training.run

    def damage(step: int, rank: int) -> None:
        dist.barrier()
        if ranks.first:
            flip_one_bit(run.checkpoint(step) / f"rank-{rank:05d}.safetensors")
        dist.barrier()

    damage(2, rank=1)
    state = training.saver.load_newest()
    assert state is not None and state["step"] == 1 and fingerprint(training.engine) == expected[0]
    training.state.step = 1
    steps(training, 1)
    assert fingerprint(training.engine) == expected[1]
    assert steps(training, 1) == after
    damage(1, rank=0)
    try:
        training.saver.load_newest()
    except CheckpointError as error:
        assert fingerprint(training.engine) == untouched
        return state, str(error)
    raise AssertionError("a damaged checkpoint was loaded")


@fault(
    "loading",
    "a damaged checkpoint, as two training ranks see it",
    "a live engine is rolled back: once past a damaged checkpoint, once with no good one left",
    "every number is that of the good checkpoint; without a good one nothing has changed",
)
@pytest.mark.parametrize(
    ("stage", "method"), [(2, "full"), (3, "full"), pytest.param(3, "lora", marks=pytest.mark.slow)]
)
def test_state_is_unchanged_until_all_files_are_verified(tmp_path: Path, stage: int, method: str) -> None:
    save_tiny_model(tmp_path / "model")
    config = tiny_config(tmp_path, *FIVE_STEPS, f"zero.stage={stage}", "train.precision=bf16", f"method.kind={method}")
    run = freeze_tiny(config, tmp_path / "run", WORLD)
    for _, error in run_ranks(_damaged_resume, WORLD, config, run.path, tmp_path):
        assert "step-00000001: rank-00000.safetensors of rank 0 does not match its SHA-256" in error


@fault(
    "loading",
    "a checkpoint of another run is in the run directory",
    "one of another learning rate, one of another model",
    "refused before anything is loaded",
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "model")
    save_tiny_model(tmp_path / "other", hidden_size=32)
    configs = [tiny_config(tmp_path, *FIVE_STEPS, *change) for change in
               ((), ("optim.lr=1e-3",), (f"model.path={tmp_path / 'other'}",))]  # fmt: skip
    run = freeze_tiny(configs[0], tmp_path / "run", 1)
    ((lr, model),) = run_ranks(_resume_each, 1, configs, run.path)
    assert "saved by a run with other settings" in lr
    assert "belongs to another model" in model
    assert "has shape [259, 64] in the checkpoint and has shape [259, 32] in this model" in model


def _resume_each(configs: List[Any], path: Path) -> List[str]:
    ranks = start(configs[0])
    training = assemble(configs[0], path, ranks)
    steps(training, 1)
    save(training)
    newest = training.run.published_checkpoints()[-1]
    assert {file.suffix for file in newest.rglob("*") if file.is_file()} <= {".json", ".safetensors", ".jinja", ".txt"}
    assert read_json(newest / "state.json")["run_id"] == "tiny"
    refusals = []
    for config in configs[1:]:
        try:
            assemble(config, path, ranks)
        except CheckpointError as error:
            refusals.append(str(error))
    return refusals


@fault(
    "loading",
    "metrics.jsonl was truncated or deleted",
    "before a resume: deleted, truncated before the step of the checkpoint, complete",
    "one line says what is missing; the run continues",
)
def test_resume_says_that_metrics_end_before_the_checkpoint(tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "model")
    config = tiny_config(tmp_path, *FIVE_STEPS, "train.log_every=2")
    run = freeze_tiny(config, tmp_path / "run", 1)
    ((gone, cut, whole),) = run_ranks(_resume_after_each, 1, config, run.path)
    assert "metrics.jsonl ends at step 0, but the checkpoint is from step 5" in gone
    assert "metrics.jsonl ends at step 2, but the checkpoint is from step 5" in cut
    assert "metrics.jsonl ends" not in whole
    assert all("resumed after step 5" in text for text in (gone, cut, whole))


def _resume_after_each(config: Any, path: Path) -> List[str]:
    """Resume with several states of metrics.jsonl. Returns the output of each resume."""
    ranks, texts = start(config), []
    training = assemble(config, path, ranks)
    steps(training, 5)
    save(training)
    for logged in ([], [2], [2, 4]):
        training.run.metrics.write_text("".join(f'{{"step": {step}, "train/loss": 1.0}}\n' for step in logged))
        with contextlib.redirect_stdout(io.StringIO()) as said:
            assemble(config, path, ranks)
        texts.append(said.getvalue())
    return texts
