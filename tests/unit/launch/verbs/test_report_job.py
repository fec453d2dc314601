"""What a job tells Slurm about its run. tests/slurm runs it with a real Slurm."""

from pathlib import Path
from typing import Any, Dict

import pytest

from ftdist.launch.backends.slurm.answers import local_time
from ftdist.launch.verbs.report_job import describe, write_deadline
from ftdist.run.rundir import RunDir


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
