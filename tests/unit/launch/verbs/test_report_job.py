"""What a job tells Slurm about its run. tests/slurm runs it with a real Slurm."""

import argparse
from pathlib import Path
from typing import Any, Dict

import pytest

from ftdist.launch.backends.slurm import client
from ftdist.launch.backends.slurm.answers import local_time
from ftdist.launch.backends.slurm.client import RunningJob
from ftdist.launch.verbs import report_job
from ftdist.launch.verbs.report_job import describe, write_deadline
from ftdist.run.rundir import RunDir
from tests.unit.launch.run_tools import make_run


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ({"state": "starting"}, "ftdist: starting"),
        ({"state": "running", "step": 120, "max_steps": 5000, "loss": 2.34567}, "ftdist: step 120/5000 loss 2.3457"),
    ],
)
def test_the_comment_of_a_job(status: Dict[str, Any], said: str) -> None:
    assert describe(status) == said


def test_the_end_of_a_job_is_written_until_it_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDir(tmp_path)
    write_deadline(run, local_time("2026-01-31T12:00:00"))
    assert abs(float(run.deadline.read_text()) - 1769860800) <= 14 * 3600  # in any time zone
    write_deadline(run, local_time("NONE"))
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("comment", ["", "ftdist: starting", "mine"])
def test_a_job_reports_until_it_is_over(comment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, comments = make_run(tmp_path / "run", state="running", step=1, max_steps=2, loss=3.0), list[str]()
    answers = iter([None, RunningJob(False, 99.0, comment), RunningJob(True, None, "")])

    def set_comment(job: str, text: str) -> bool:
        comments.append(text)
        return True

    monkeypatch.setattr(client, "available", lambda: True)
    monkeypatch.setattr(client, "set_comment", set_comment)
    monkeypatch.setattr(report_job, "_ask", lambda job: next(answers))
    monkeypatch.setattr(report_job, "end_with_parent", lambda number: None)
    assert report_job.report_job(argparse.Namespace(run_dir=str(run.path), job="7", every=0.0)) == 0
    assert run.deadline.read_text() == "99\n"
    assert comments == ([] if comment == "mine" else ["ftdist: step 1/2 loss 3.0000"])
