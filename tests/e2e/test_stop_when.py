"""A run that has stopped gaining ends early, also after a kill, and cannot be resumed."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from ftdist.base.json_files import read_json
from ftdist.checkpoint.export import export_checkpoint
from ftdist.config.frozen import load_config
from ftdist.run.rundir import checkpoint_step
from tests.helpers.cli import ftdist
from tests.helpers.group import ftdist_with_forked_ranks
from tests.helpers.runs import SMOKE, assert_same, copy_of, reference_run

SETTINGS = (*SMOKE, "track=disabled", "data.builtin_general=false", "train.max_steps=12", "train.eval_every=1",
            "train.checkpoint_every=1", "train.keep_checkpoints=12", "optim.lr=0.05",
            "train.stop_when.patience=2")  # fmt: skip


def _weights(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def test_a_run_that_has_stopped_gaining_ends_and_exports_its_best_checkpoint(tmp_path: Path) -> None:
    run = reference_run(*SETTINGS)
    status, config = run.read_status(), load_config(run.config)
    losses = [record["eval/heldout/loss"] for record in run.read_metrics() if "eval/heldout/loss" in record]
    kl = [record["forgetting/kl"] for record in run.read_metrics() if "forgetting/kl" in record]
    net = [record["gain/net"] for record in run.read_metrics() if "gain/net" in record]
    assert net == pytest.approx([losses[0] - loss - far for loss, far in zip(losses[1:], kl[1:], strict=True)])
    best = losses.index(min(losses))
    assert (status["state"], status["step"], status["max_steps"]) == ("done", best + 2, 12) and 0 < best < 10
    assert len(losses) == best + 3, "two evaluations after the best one"
    assert status["exit_reason"].startswith("it has stopped gaining: 2 evaluations had no lower held-out loss")
    assert checkpoint_step(run.find_checkpoint("best")) == best
    assert checkpoint_step(run.find_checkpoint("last")) == best + 2
    for name in ("best", "last"):
        export_checkpoint(run.find_checkpoint(name), tmp_path / name, config)
    assert _weights(run.export) == _weights(tmp_path / "best") != _weights(tmp_path / "last")
    report = json.loads((run.report / "report.json").read_text())
    assert (report["state"], report["reason"], report["best"]["step"]) == ("done", status["exit_reason"], best)
    hours = [record["perf/device_hours"] for record in run.read_metrics() if "perf/device_hours" in record]
    assert len(hours) == len(losses) and 0 < hours[0] <= hours[-1] <= report["cost"]["device_hours"]
    assert report["commands"]["continue"].startswith("ftdist train ")
    assert f"Its best checkpoint is that of step {best}" in (run.report / "report.md").read_text()
    assert report["goodput"]["attempts"][-1]["state"] == "done", "not the state of a run that is under way"
    assert read_json(run.energy / "attempt-00000.00000.json").items() >= {"attempt": 0, "groups": 1}.items()
    again = ftdist("resume", run.path)
    assert again.code == 0 and status["exit_reason"] in again.text and "is done (it has stopped gaining" in again.text


@pytest.mark.parametrize("kept", [0, 1])
def test_a_killed_run_decides_the_same(tmp_path: Path, kept: int) -> None:
    """A kill leaves the checkpoints so far, and records of later steps. ``kept``: evaluations since the best one."""
    reference = reference_run(*SETTINGS)
    run, best = copy_of(reference, tmp_path / "run"), checkpoint_step(reference.find_checkpoint("best"))
    for path in run.published_checkpoints():
        if checkpoint_step(path) > best + kept:
            shutil.rmtree(path)
    shutil.rmtree(run.export)
    run.write_status(state="running", exit_reason="", pid=2**22 - 1)
    assert ftdist_with_forked_ranks("resume", run.path) == 0
    assert run.read_status()["exit_reason"] == reference.read_status()["exit_reason"]
    assert_same(run, reference)
