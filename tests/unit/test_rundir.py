from pathlib import Path

import pytest

from ftdist.errors import ConfigError
from ftdist.rundir import MANIFEST, RunDir, write_json
from ftdist.zero.checkpoint import prune, verify_checkpoint


def _publish(run: RunDir, step: int, eval_loss: float | None = None) -> Path:
    folder = run.checkpoint(step)
    folder.mkdir(parents=True)
    write_json(folder / MANIFEST, {"step": step, "eval_loss": eval_loss, "files": {}})
    return folder


def test_last_best_and_step(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    _publish(run, 5, 2.0)
    best = _publish(run, 10, 1.5)
    _publish(run, 15, 1.5).joinpath("x").touch()
    last = _publish(run, 20)  # not evaluated at its step: no candidate
    assert run.find_checkpoint("last") == last
    assert run.find_checkpoint("best") == run.checkpoint(15) != best  # of equals the newest
    assert run.find_checkpoint("5") == run.find_checkpoint("step-00000005") == run.checkpoint(5)


def test_what_is_not_published_is_not_there(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.checkpoint(5).mkdir(parents=True)  # no manifest
    (run.checkpoints / ".tmp-step-00000006").mkdir()
    with pytest.raises(ConfigError, match=r"no checkpoint 'last'[\s\S]*none"):
        run.find_checkpoint("last")


def test_a_missing_step_names_those_there_are(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    _publish(run, 5)
    _publish(run, 10)
    for name in ("7", "best", "newest"):
        with pytest.raises(ConfigError, match=r"last, best or a step of: 5, 10"):
            run.find_checkpoint(name)


def test_pruning_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0), (4, None), (5, None)):
        _publish(run, step, loss)
    (run.checkpoints / ".tmp-step-00000006").mkdir()
    prune(run, keep=2)
    assert [path.name for path in run.published_checkpoints()] == ["step-00000002", "step-00000004", "step-00000005"]
    assert not list(run.checkpoints.glob(".*"))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda f: f.unlink(), "a.pt is missing"),
        (lambda f: f.write_bytes(b"123"), "has 3 bytes, not 4"),
        (lambda f: f.write_bytes(b"1235"), "does not have the hash"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, damage: object, says: str) -> None:
    import hashlib

    (tmp_path / "a.pt").write_bytes(b"1234")
    digest = hashlib.sha256(b"1234").hexdigest()
    write_json(tmp_path / MANIFEST, {"files": {"a.pt": {"size": 4, "sha256": digest}}})
    assert verify_checkpoint(tmp_path) is None
    damage(tmp_path / "a.pt")  # type: ignore[operator]
    assert says in str(verify_checkpoint(tmp_path))


def test_a_cut_manifest_is_no_checkpoint_to_trust(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text('{"files": {')
    assert str(verify_checkpoint(tmp_path)).startswith(MANIFEST)


def test_a_last_line_cut_by_a_crash_is_left_out(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.metrics.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert [record["step"] for record in run.read_metrics()] == [1, 2]
