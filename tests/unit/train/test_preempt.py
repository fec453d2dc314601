"""Requests to stop a run, and ranks on a node that Slurm gave up."""

import signal
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
