"""Requests to stop a run, and ranks on a node that Slurm gave up."""

import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ftdist.base.errors import LaunchError
from ftdist.run.rundir import RunDir
from ftdist.train.preempt import Preemption


@pytest.fixture(autouse=True)
def restore_sigterm_handler() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def test_an_older_attempt_fails_when_a_newer_one_has_started(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.write_status(state="running", attempt=1)
    first, other = Preemption(run, rank=0, attempt=1), Preemption(run, rank=1, attempt=1)
    assert not first.requested()
    run.write_status(attempt=2)
    with pytest.raises(LaunchError, match="this process belongs to attempt 1, but a newer attempt"):
        first.requested()
    assert not other.requested()  # only rank 0 reads the status; its failure ends the other ranks
    assert not Preemption(run, rank=0, attempt=2).requested()


def test_rank_0_stops_the_run_when_the_time_limit_of_its_job_is_near(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.write_status(state="running", attempt=0)
    first, other = (Preemption(run, rank=rank, stop_before_s=120) for rank in (0, 1))
    run.deadline.write_text(f"{time.time() + 100:.0f}\n")
    assert first.requested() and not other.requested(), "the requests of all ranks are summed after each step"
    assert re.fullmatch(r"the job ends in \d+ s, and a save has taken 0 s", first.near_limit)
    run.deadline.unlink()
    assert first.requested(), "a request is not taken back"
