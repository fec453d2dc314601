"""The verb ``status``."""

import os
import platform
import subprocess
import time
from pathlib import Path

import pytest

from ftdist.base.errors import EXIT_DONE, ConfigError
from ftdist.launch import cli
from ftdist.launch.backends.slurm import client
from ftdist.launch.verbs import status
from tests.helpers.users import as_other_user, needs_root, open_to_all
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
    assert lines[1].split() == ["runs/a", "done", "6/6", "1.2346", "98,765", "-", "step", "6,", "2", "h", "ago"]
    assert "runs/x-sweep/000" in lines[2] and "failed: rank 1: out of memory" in lines[2]
    assert lines[3].split()[1:3] == ["stopped", "0/?"] and "preempted: near the time limit" in lines[4]


def test_goodput_is_shown_where_the_run_has_recorded_its_times(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, state in (("a", "done"), ("b", "running")):
        run = make_run(here / "runs" / name, state=state, last_checkpoint_step=6, pid=os.getpid(),
                       host=platform.node(), time=time.time())  # fmt: skip
        run.record_phase("loading", time=time.time() - 40)
        run.record_phase("steps", time=time.time() - 30, step=0)
        run.record_phase("ended" if state == "done" else "steps", **({} if state == "done" else {"step": 6}))
    assert cli.dispatch(["status"]) == EXIT_DONE
    _, first, second = capsys.readouterr().out.splitlines()
    assert first.split()[5] == "0%" and second.split()[5] == "75%", "the last step of a was not finished"


def test_runs_are_shown_before_the_error_about_a_place_without_runs(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(here / "mine", state="done")
    with pytest.raises(ConfigError, match="no run in nowhere"):
        cli.dispatch(["status", "mine", "nowhere"])
    assert capsys.readouterr().out.splitlines()[1].split()[:2] == ["mine", "done"]


@needs_root
def test_a_folder_that_cannot_be_listed_is_an_error_about_rights(here: Path) -> None:
    make_run(open_to_all(here) / "runs" / "a", state="done")
    (here / "runs").chmod(0o711)
    said = as_other_user(lambda: cli.dispatch(["status", str(here / "runs")]))
    assert said.startswith(f"AccessError: no permission to read {here}/runs: {here}/runs belongs to root")


@needs_root
def test_a_run_that_cannot_be_read_is_named(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b", "x-sweep/000"):
        make_run(open_to_all(here) / "runs" / name, state="done").path.chmod(0o755 if name == "a" else 0o700)
    assert as_other_user(lambda: cli.dispatch(["status", str(here / "runs")])) == "0"
    said = "is left out: it belongs to root and has mode 0700"
    assert capfd.readouterr().err == f"note: runs/b {said}\nnote: runs/x-sweep/000 {said}\n"


@pytest.mark.parametrize(
    ("answer", "says"),
    [("ftdist|7|FAILED|None|N/A\n", "dead?: job 7 failed"), ("", "dead?: Slurm no longer knows job 7")],
)
def test_a_job_that_ended_without_a_trace_shows_what_slurm_says(
    answer: str, says: str, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(here / "run", state="queued", job_id="7", backend="slurm")
    monkeypatch.setattr(client, "_run", lambda *command: subprocess.CompletedProcess(command, 0, answer, ""))
    monkeypatch.setattr(client, "available", lambda: True)
    assert cli.dispatch(["status", "run"]) == EXIT_DONE
    assert says in capsys.readouterr().out


def test_a_run_that_was_requeued_shows_its_attempt(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also one that goes on in jobs of a chain, on sites that forbid to requeue. Logs have the same number."""
    make_run(here / "runs" / "a", state="preempted", attempt=2, requeues=2, exit_reason="near the time limit")
    make_run(here / "runs" / "b", state="done", attempt=1, requeues=1)
    make_run(here / "runs" / "c", state="done", attempt=1, requeues=0)  # resumed by its user
    assert cli.dispatch(["status"]) == EXIT_DONE
    lines = capsys.readouterr().out.splitlines()
    assert "preempted (attempt 2, 2 requeues): near the time limit" in lines[1]
    assert "done (attempt 1, 1 requeue) " in lines[2] and "attempt" not in lines[3]


def test_a_long_reason_is_cut_only_in_a_table_of_several_runs(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reason = "near the time limit; not requeued, because 2 attempts in a row saved no newer checkpoint: raise it"
    for name in ("a", "b"):
        make_run(here / "runs" / name, state="preempted", exit_reason=reason)
    for place, shown in (("runs", f"{reason[:69]}… "), ("runs/a", f"{reason} ")):
        assert cli.dispatch(["status", place]) == EXIT_DONE
        assert f"preempted: {shown}" in capsys.readouterr().out


def test_watching_in_a_file_prints_changes_and_ends_when_no_run_is_under_way(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(here / "runs" / "a", state="running", host=platform.node(), pid=os.getpid(), step=1, max_steps=4)
    make_run(here / "runs" / "b", state="done")
    later = [{"step": 2}, {"step": 3}, {"last_checkpoint_step": 3, "last_checkpoint_time": time.time(), "loss": 1.5},
             {}, {"state": "done", "step": 4}]  # fmt: skip

    def pass_time(seconds: float) -> None:
        run.write_status(**later.pop(0))

    monkeypatch.setattr(status.time, "sleep", pass_time)
    assert cli.dispatch(["status", "--watch", "runs"]) == EXIT_DONE
    _, first, second, saved, done = capsys.readouterr().out.splitlines()
    assert first.split()[1:3] == ["running", "1/4"] and second.split()[:2] == ["runs/b", "done"]
    assert saved.split()[2:] == ["runs/a", "running", "step", "3/4", "loss", "1.5000", "checkpoint", "step", "3"]
    assert done.split()[2:5] == ["runs/a", "done", "step"] and not later

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    run.write_status(state="running")
    monkeypatch.setattr(status.time, "sleep", interrupt)
    assert cli.dispatch(["status", "--watch"]) == EXIT_DONE
