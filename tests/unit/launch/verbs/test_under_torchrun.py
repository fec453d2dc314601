"""Ranks that the user's own torchrun starts."""

import json
import os
import platform
from pathlib import Path

import pytest

from ftdist.base.errors import LaunchError
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
