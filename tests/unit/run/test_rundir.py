"""Checkpoints, status and record of a run directory."""

import os
import resource
import shutil
from pathlib import Path

import pytest

from ftdist.base.errors import ConfigError
from ftdist.base.json_files import write_json
from ftdist.run.rundir import MANIFEST, RunDir, manifest_text


def publish(run: RunDir, step: int, eval_loss: float | None = None) -> Path:
    folder = run.checkpoint(step)
    folder.mkdir(parents=True)
    (folder / MANIFEST).write_text(manifest_text({"step": step, "eval_loss": eval_loss, "files": {}}))
    return folder


def test_a_checkpoint_is_found_as_last_or_best_or_by_its_step(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    publish(run, 5, 2.0)
    best = publish(run, 10, 1.5)
    publish(run, 15, 1.5).joinpath("x").touch()
    last = publish(run, 20)  # was not evaluated at its step, so that it cannot be the best
    assert run.find_checkpoint("last") == last
    assert run.find_checkpoint("best") == run.checkpoint(15) != best  # the newer of two with the same loss
    assert run.find_checkpoint("5") == run.find_checkpoint("step-00000005") == run.checkpoint(5)


def test_unpublished_checkpoints_are_not_found(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.checkpoint(5).mkdir(parents=True)  # no manifest
    (run.checkpoints / ".tmp-step-00000006").mkdir()
    with pytest.raises(ConfigError, match=r"no checkpoint 'last'[\s\S]*none"):
        run.find_checkpoint("last")


def test_a_missing_checkpoint_is_refused_with_a_list_of_steps(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    publish(run, 5)
    publish(run, 10)
    for name in ("7", "best", "newest"):
        with pytest.raises(ConfigError, match=r"last, best or a step of: 5, 10"):
            run.find_checkpoint(name)


def test_the_best_checkpoint_has_a_finite_loss_and_is_no_copy(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    publish(run, 5, float("nan"))
    publish(run, 10, 2.0)
    shutil.copytree(run.checkpoint(10), run.checkpoints / "step-00000010.bak")
    assert run.find_checkpoint("best") == run.checkpoint(10)
    assert run.published_checkpoints() == [run.checkpoint(5), run.checkpoint(10)]


def test_a_checkpoint_with_a_damaged_manifest_is_never_the_best(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    publish(run, 5, 2.0)
    damaged = publish(run, 10, 1.0) / MANIFEST
    damaged.write_text(damaged.read_text().replace("1.0", "1.1"))
    assert run.find_checkpoint("best") == run.checkpoint(5)


def test_a_last_line_that_a_crash_cut_is_left_out(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.metrics.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert [record["step"] for record in run.read_metrics()] == [1, 2]


def test_a_full_disk_leaves_the_old_status_and_no_temporary_file(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.write_status(state="running", step=1)
    before = run.status.read_text()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            run.write_status(step=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert run.status.read_text() == before and [path.name for path in tmp_path.iterdir()] == ["status.json"]


@pytest.mark.parametrize("content", [b"", b"[1]", b"\xff\xfe\x00", b'{"pid": "x"}', b'{"state": '])
def test_a_damaged_status_is_refused_with_its_fix(content: bytes, tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.status.write_bytes(content)
    with pytest.raises(ConfigError) as error:
        run.read_status()
    assert error.value.fix == f"rm {run.status} (the run continues without it)"
    run.status.unlink()
    assert run.read_status() == {}


def test_small_files_are_flushed_to_the_disk_before_they_are_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order, fsync, replace = [], os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (order.append("fsync"), fsync(fd)))
    monkeypatch.setattr(Path, "replace", lambda path, target: (order.append("replace"), replace(path, target)))
    write_json(tmp_path / "provenance.json", {"a": 1})
    assert order == ["fsync", "replace"]
