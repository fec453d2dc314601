"""The beginning and the end of an attempt: what is removed, what status.json holds, which exit code follows."""

import os
import platform
import signal
from pathlib import Path
from typing import Any, Dict

import pytest

from ftdist.base.errors import EXIT_DONE, EXIT_PREEMPTED, LaunchError
from ftdist.config.launch import LaunchKind
from ftdist.launch.attempt import lifecycle
from ftdist.run.rundir import RunDir


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    found = RunDir(tmp_path / "run")
    found.logs.mkdir(parents=True)
    found.write_status(state="frozen", attempt=0)
    return found


def begin(run: RunDir, **more: Any) -> int:
    return lifecycle.begin(run, LaunchKind.local, **more)


def test_attempts_are_counted_from_zero(run: RunDir) -> None:
    assert lifecycle.next_attempt(run) == begin(run) == 0
    assert lifecycle.next_attempt(run) == begin(run) == 1
    run.write_status(state="failed", attempt=4)  # torchrun has restarted the ranks
    assert begin(run) == 5 and begin(run, attempt=9) == 9


def test_the_status_says_who_runs_the_attempt(run: RunDir) -> None:
    begin(run)
    expected = {"state": "starting", "attempt": 0, "pid": os.getpid(), "host": platform.node(), "backend": "local"}
    assert run.read_status().items() >= expected.items()
    lifecycle.begin(run, LaunchKind.slurm, pid=None, job_id="7")
    status = run.read_status()
    assert (status["attempt"], status["pid"], status["job_id"], status["backend"]) == (1, None, "7", "slurm")
    run.write_status(state="preempted", nodes="n[1-2]", exit_code=EXIT_PREEMPTED)
    begin(run)  # the job has nothing to do with this attempt
    status = run.read_status()
    assert (status["job_id"], status["nodes"], status["exit_code"], status["backend"]) == (None, None, None, "local")


def test_an_attempt_begins_without_the_leftovers_of_earlier_ones(run: RunDir) -> None:
    mine, other = run.error_file(0, 0), run.error_file(0, 3)
    partial = run.path / f".{run.metrics.name}.host.1.0000"
    for path in (mine, other, partial, run.preempt, run.cancel):
        path.touch()
    (run.path / f".{run.export.name}.host.1.0000").mkdir()
    begin(run)
    assert {path.name for path in run.path.iterdir()} == {"logs", "status.json", "timeline.jsonl"}
    assert list(run.logs.iterdir()) == [other]


def test_a_batch_job_keeps_a_request_to_stop_that_came_while_it_waited(run: RunDir) -> None:
    run.preempt.touch()
    begin(run, keep_requests=True)
    assert run.preempt.exists()


@pytest.mark.parametrize(
    ("state", "code", "more", "expected"),
    [
        ("done", 0, {}, EXIT_DONE),
        ("preempted", 0, {}, EXIT_PREEMPTED),
        ("running", 1, {"stopped": "stopped by Slurm"}, EXIT_PREEMPTED),
        ("done", 1, {"stopped": "stopped by Slurm"}, EXIT_DONE),
        ("done", 1, {}, None),
        ("running", 0, {}, None),
        ("running", -signal.SIGKILL, {}, None),
        ("running", -signal.SIGTERM, {}, None),
    ],
)
def test_the_exit_code_follows_from_the_state(
    state: str, code: int, more: Dict[str, Any], expected: int | None, run: RunDir
) -> None:
    run.write_status(state=state)
    if expected is None:
        with pytest.raises(LaunchError):
            lifecycle.conclude(run, 0, code, [], **more)
        assert run.read_status()["state"] == ("done" if state == "done" else "failed")
    else:
        assert lifecycle.conclude(run, 0, code, [], **more) == expected
        assert run.read_status()["state"] in lifecycle.STATE_EXIT


def test_ranks_killed_after_a_request_to_stop_can_be_resumed(run: RunDir) -> None:
    begin(run)
    run.preempt.touch()
    assert lifecycle.conclude(run, 0, -signal.SIGKILL, []) == EXIT_PREEMPTED
    status = run.read_status()
    assert (status["state"], status["exit_reason"]) == ("preempted", "ended immediately, before it could save")


def test_a_failure_does_not_replace_what_a_rank_wrote(run: RunDir) -> None:
    begin(run)
    run.write_status(state="failed", exit_reason="rank 1: boom")
    with pytest.raises(LaunchError), lifecycle.failures_recorded(run):
        raise LaunchError("n1: exit code 1")
    assert run.read_status()["exit_reason"] == "rank 1: boom"


def test_a_failure_before_the_ranks_is_recorded(run: RunDir) -> None:
    begin(run)
    with pytest.raises(LaunchError), lifecycle.failures_recorded(run):
        raise LaunchError("port 1 cannot be used\n  logs: here")
    status = run.read_status()
    assert (status["state"], status["exit_reason"]) == ("failed", "port 1 cannot be used")
