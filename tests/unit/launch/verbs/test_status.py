"""The verb ``status``."""

import time
from pathlib import Path

import pytest

from ftdist.base.errors import EXIT_DONE, ConfigError
from ftdist.launch import cli
from tests.unit.launch.run_tools import make_run

pytestmark = pytest.mark.usefixtures("here")


def test_a_row_for_each_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(here / "runs" / "a", state="done", step=6, max_steps=6, loss=1.23456, tokens_per_s=98765.4,
             last_checkpoint_step=6, last_checkpoint_time=time.time() - 7200)  # fmt: skip
    make_run(here / "runs" / "x-sweep" / "000", state="failed", exit_reason="rank 1: out of memory")
    make_run(here / "runs" / "x-sweep" / "001", state="preempted", exit_reason="stopped")
    make_run(here / "runs" / "x-sweep" / "002", state="preempted", exit_reason="near the time limit")
    assert cli.dispatch(["status"]) == EXIT_DONE
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert lines[1].split() == ["runs/a", "done", "6/6", "1.2346", "98,765", "step", "6,", "2", "h", "ago"]
    assert "runs/x-sweep/000" in lines[2] and "failed: rank 1: out of memory" in lines[2]
    assert lines[3].split()[1:3] == ["stopped", "0/?"] and "preempted: near the time limit" in lines[4]


def test_runs_are_shown_before_the_error_about_a_place_without_runs(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(here / "mine", state="done")
    with pytest.raises(ConfigError, match="no run in nowhere"):
        cli.dispatch(["status", "mine", "nowhere"])
    assert capsys.readouterr().out.splitlines()[1].split()[:2] == ["mine", "done"]
