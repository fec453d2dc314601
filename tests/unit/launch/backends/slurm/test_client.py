"""Whether Slurm has answered: a job that it does not know is an answer, a controller that is away is none."""

import subprocess
from pathlib import Path
from typing import Any, List, Optional

import pytest

from ftdist.base.errors import LaunchError
from ftdist.launch.backends.slurm import answers, client, follow
from ftdist.launch.backends.slurm.backend import SlurmBackend
from ftdist.launch.backends.slurm.follow import JobWatch
from tests.unit.launch.run_tools import make_run

AWAY = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)\n"
RUNNING = "Welcome!\nftdist|7|RUNNING|None|2026-01-01T00:00:00\n"


def answer(monkeypatch: pytest.MonkeyPatch, code: int, printed: str, error: str) -> None:
    def run(*command: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.CompletedProcess(command, code, printed, error)

    monkeypatch.setattr(client, "_run", run)
    monkeypatch.setattr(client, "available", lambda: True)


@pytest.mark.parametrize(
    ("code", "printed", "error", "found", "state"),
    [
        (0, RUNNING, "", ["7"], "running"),
        (3, RUNNING, "a wrapper: cannot write its log\n", ["7"], "running"),
        (1, "Welcome!\n", "slurm_load_jobs error: Invalid job id specified\n", [], "dead?"),
        (0, "", "", [], "dead?"),
        (1, "Welcome!\n", AWAY, None, "running"),
    ],
)
def test_a_slurm_that_does_not_answer_says_nothing_about_jobs(
    code: int, printed: str, error: str, found: Optional[List[str]], state: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    answer(monkeypatch, code, printed, error)
    watch = JobWatch()
    jobs: Any = [watch.find(["7"]) for _ in range(2)][-1]
    assert (jobs if jobs is None else list(jobs)) == found
    said = capsys.readouterr().err
    assert said.count("note: squeue") == (found is None) and ("connect failure" in said) == (found is None)
    status = {"state": "running", "job_id": "7"}
    assert [seen.state for seen in SlurmBackend().states([status])] == [state]
    if found is None:
        for ask in (lambda: client.find_job("7"), lambda: client.find_running("7")):
            with pytest.raises(LaunchError, match="connect failure"):
                ask()


@pytest.mark.parametrize(
    ("state", "job", "written", "seen"),
    [
        ("preempted", "RUNNING", 60, "stopping"),  # the script of the job has not ended yet
        ("preempted", "RUNNING", -60, "starting"),  # requeued: the status is that of the attempt before
        ("preempted", "PENDING", -60, "queued"),
        ("queued", "RUNNING", -60, "starting"),  # the script has not yet begun the attempt
        ("queued", "PENDING", -60, "queued"),
        ("running", "RUNNING", 60, "running"),
        ("queued", "COMPLETING", -60, "stopping"),  # cancelled before it has written anything
        ("preempted", "CANCELLED", 60, "preempted"),
    ],
)
def test_a_job_whose_ranks_have_ended_is_not_shown_as_starting(
    state: str, job: str, written: float, seen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = "2026-01-01T00:00:00"
    answer(monkeypatch, 0, f"ftdist|7|{job}|None|{began}\n", "")
    status = {"state": state, "job_id": "7", "time": (answers.local_time(began) or 0) + written}
    assert [found.state for found in SlurmBackend().states([status])] == [seen]


def test_a_cancel_of_a_job_that_ends_does_not_promise_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run", state="queued", job_id="7", backend="slurm")
    answer(monkeypatch, 0, "ftdist|7|COMPLETING|None|2026-01-01T00:00:00\n", "")
    assert SlurmBackend().stop(run) == "job 7 is ending already" and run.cancel.exists()


@pytest.mark.parametrize(("state", "says"), [("queued", "its run will not begin"), ("running", "saving a checkpoint")])
def test_a_cancel_while_slurm_does_not_answer(
    state: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run", state=state, job_id="7", backend="slurm")
    answer(monkeypatch, 1, "", AWAY)
    assert says in SlurmBackend().stop(run) and run.cancel.exists() and run.preempt.exists()


@pytest.mark.parametrize(("attempt", "more"), [(-1, "; it had not started"), (0, "")])
@pytest.mark.parametrize("now", [False, True])
def test_a_job_that_waits_again_is_not_said_to_have_never_started(
    attempt: int, more: str, now: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run", state="queued", job_id="7", backend="slurm", attempt=attempt)
    answer(monkeypatch, 0, "ftdist|7|PENDING|None|N/A\n", "")
    assert SlurmBackend().stop(run, now) == f"job 7 was removed from the queue{more}"
    assert run.read_status()["exit_reason"] == "cancelled in the queue"


OF_PYXIS = "slurmstepd-node1: error: "
PYXIS = f"""\
{OF_PYXIS}pyxis: child 26377 failed with error code: 1
{OF_PYXIS}{{}}
{OF_PYXIS}pyxis: couldn't create enroot start configuration script
{OF_PYXIS}pyxis: printing enroot log file:
{OF_PYXIS}pyxis:     [INFO] Extracting squashfs filesystem...
{OF_PYXIS}pyxis:     5440 inodes (5538 blocks) to write
{OF_PYXIS}pyxis:
{OF_PYXIS}pyxis: container was not started successfully by another task
{OF_PYXIS}spank: required plugin spank_pyxis.so: task_init() failed with rc=-1
{OF_PYXIS}Failed to invoke spank plugin stack
{OF_PYXIS}pyxis: container start failed with error code: 1
{OF_PYXIS}pyxis: child 26391 failed with error code: 1
srun: error: node1: task 0: Exited with exit code 1
"""
"""What pyxis 0.24 and enroot 4.1 print if a container does not start."""


@pytest.mark.parametrize(
    ("state", "log", "says"),
    [
        ("FAILED", "line 28: module: command not found\nerror: module load cuda/9 failed\nquota: 1\n\n",
         "FAILED; its log says: error: module load cuda/9 failed"),
        ("FAILED", "Welcome\nline 40: /x/python: No such file or directory\n",
         "FAILED; its log says: line 40: /x/python: No such file or directory"),
        ("FAILED", "pyxis: x\npython3: No module named ftdist\nsrun: error: n1: task 0: Exited with exit code 1\n",
         "FAILED; its log says: python3: No module named ftdist"),
        ("FAILED", PYXIS.format("pyxis: failed to create container filesystem for image: /no.sqsh\n"
                                f"{OF_PYXIS}pyxis:     [ERROR] No such file or directory: /no.sqsh"),
         f"FAILED; its log says: {OF_PYXIS}pyxis:     [ERROR] No such file or directory: /no.sqsh"),
        ("FAILED", PYXIS.format("pyxis: --container-mounts: source path does not exist: /no"),
         f"FAILED; its log says: {OF_PYXIS}pyxis: --container-mounts: source path does not exist: /no"),
        ("FAILED", None, "FAILED, and it wrote no log. Perhaps its node does not see the run directory"),
        ("TIMEOUT", "srun: error: task 0: Exited with exit code 1\n", "TIMEOUT"),
    ],
)  # fmt: skip
def test_a_job_whose_script_fails_is_explained_by_the_last_words_of_its_log(
    state: str, log: Optional[str], says: str, tmp_path: Path
) -> None:
    run = make_run(tmp_path / "run", state="queued", job_id="7_0")
    if log is not None:
        run.job_log("7_0").write_text(log)
    with pytest.raises(LaunchError) as error:
        follow.outcome(run, client.Job("7_0", state))
    assert ("launch.slurm.stop_before_limit_s=" in error.value.fix) == (state == "TIMEOUT")
    assert ("launch.slurm.python=" in error.value.fix) == ("python" in says)
    assert run.read_status()["exit_reason"] == f"Slurm ended job 7_0: {says}"


def test_a_banner_in_another_encoding_does_no_harm(tmp_path: Path) -> None:
    """Also where Slurm's own text follows it."""
    wrapper = tmp_path / "squeue"
    wrapper.write_bytes(b"#!/bin/sh\nprintf 'R\\351seau\\nftdist|7\\n'\n")
    wrapper.chmod(0o755)
    assert client.run_command(str(wrapper)) == "R\ufffdseau\nftdist|7\n"


def test_only_the_states_before_a_job_runs_are_followed() -> None:
    """Slurm shows SIGNALING for a moment while it sends the signal before the time limit."""
    states = ("PENDING", "CONFIGURING", "SUSPENDED", "RUNNING", "SIGNALING", "COMPLETING", "TIMEOUT")
    assert [state for state in states if client.Job("7", state).waits] == ["PENDING", "CONFIGURING", "SUSPENDED"]


def test_slurm_is_asked_seldom_about_a_job_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its controller serves all users. Other jobs, or a run that has ended, are asked about at once."""
    answer(monkeypatch, 0, RUNNING, "")
    asked: List[List[str]] = []
    find_jobs, passed = client.find_jobs, [100.0]
    monkeypatch.setattr(client, "find_jobs", lambda jobs: asked.append(jobs) or find_jobs(jobs))
    monkeypatch.setattr(follow.time, "monotonic", lambda: passed[0])
    watch = follow.JobWatch()
    for seconds, jobs, now, total in (
        (0, ["7"], False, 1), (1, ["7"], False, 1), (1, ["8"], False, 2), (1, ["8"], True, 3),
        (1, ["8"], False, 3), (3, ["8"], False, 4),
    ):  # fmt: skip
        passed[0] += seconds
        assert watch.find(jobs, now=now) == find_jobs(jobs) and len(asked) == total
