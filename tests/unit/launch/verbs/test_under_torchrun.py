"""Ranks that the user's own torchrun starts."""

import json
import os
import platform
from pathlib import Path
from typing import List

import pytest

from ftdist.base.errors import EXIT_PREEMPTED, LaunchError
from ftdist.config.launch import LaunchKind
from ftdist.launch.backends.registry import backend_of_status
from ftdist.launch.verbs import under_torchrun
from tests.unit.launch.run_tools import make_run, smoke

pytestmark = pytest.mark.usefixtures("here")


def test_a_restart_by_torchrun_finds_the_run_that_it_started(here: Path) -> None:
    make_run(here / "runs" / "1", state="running").provenance.write_text(json.dumps({"host": "other", "agent_pid": 1}))
    mine = make_run(here / "runs" / "2", state="running")
    mine.provenance.write_text(json.dumps({"host": platform.node(), "agent_pid": os.getppid()}))
    make_run(here / "runs" / "3", state="running").provenance.write_text(json.dumps({"host": "other", "agent_pid": 1}))
    assert under_torchrun._frozen_before(smoke()).path.name == "2"
    with pytest.raises(LaunchError, match="the run directory of its first start was not found in"):
        under_torchrun._frozen_before(smoke("run_dir=runs/1"))


def test_a_run_of_slurm_that_is_resumed_under_torchrun_is_no_longer_one_of_slurm(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(here / "run", state="preempted")
    run.write_status(attempt=2, backend="slurm", job_id="7", nodes="n1", exit_code=EXIT_PREEMPTED)

    def rank(config: object, arguments: List[str], request: Path) -> int:
        assert arguments == [str(run.path), "--to-store", "--attempt", "3"]
        status = run.read_status()
        assert backend_of_status(status).kind is LaunchKind.local
        assert (status["job_id"], status["nodes"], status["exit_code"]) == (None, None, None)
        assert status["attempt"] == 2, "the other ranks may not have read it yet"
        run.error_file(0, 3).write_text(json.dumps({"rank": 0, "host": "n1", "time": 1.0, "message": "the cause"}))
        return 1

    monkeypatch.setattr(under_torchrun, "_run_rank", rank)
    with pytest.raises(LaunchError, match="the cause"):
        under_torchrun._run_first_rank(smoke(), run, 3, 0.0)
