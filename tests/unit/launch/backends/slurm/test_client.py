"""Whether Slurm has answered: a job that it does not know is an answer, a controller that is away is none."""

import subprocess
from typing import Any, List, Optional

import pytest

from ftdist.base.errors import LaunchError
from ftdist.launch.backends.slurm import client
from ftdist.launch.backends.slurm.backend import SlurmBackend
from ftdist.launch.backends.slurm.follow import JobWatch

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
