"""The table of a sweep."""

import json
from pathlib import Path

import pytest

from ftdist.errors import ConfigError
from ftdist.launch.cli import dispatch
from ftdist.rundir import RunDir


def trial(folder: Path, name: str, losses: list, state: str) -> None:
    run = RunDir(folder / name)
    run.path.mkdir(parents=True)
    run.config.write_text("")
    run.write_status(state=state)
    lines = [json.dumps({"step": step, "eval/a/loss": loss}) + "\n" for step, loss in enumerate(losses)]
    run.metrics.write_text("".join(lines))
    with (folder / "index.jsonl").open("a") as index:
        index.write(json.dumps({"overrides": [f"optim.lr={name}"], "run_dir": str(run.path), "exit_code": 0}) + "\n")


def test_trials_best_first(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trial(tmp_path, "0.1", [5.0, 3.0, 4.0], "done")
    trial(tmp_path, "0.2", [5.0, 2.0], "done")
    trial(tmp_path, "0.3", [], "failed")
    trial(tmp_path, "0.4", ["nan", "nan"], "done")
    assert dispatch(["sweep", str(tmp_path)]) == 0
    rows = capsys.readouterr().out.splitlines()[1:]
    assert [row.split()[:3] for row in rows] == [
        ["2.0000", "done", "optim.lr=0.2"], ["3.0000", "done", "optim.lr=0.1"], ["-", "failed", "optim.lr=0.3"],
        ["-", "done", "optim.lr=0.4"],
    ]  # fmt: skip


def test_a_folder_without_a_sweep(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="index.jsonl"):
        dispatch(["sweep", str(tmp_path)])
