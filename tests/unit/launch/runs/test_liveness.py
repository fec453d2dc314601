"""Whether a run is under way."""

import os
import platform
import subprocess
import sys
import time
from typing import Any, Dict

import psutil
import pytest

from ftdist.launch.runs.liveness import liveness

pytestmark = pytest.mark.usefixtures("here")
HERE = {"host": platform.node(), "pid": os.getpid()}


# Ages are given, not times: these values are made when the tests are collected, and the test may run much later.
@pytest.mark.parametrize(
    ("status", "age_s", "state"),
    [
        ({"state": "done"}, 0.0, "done"),
        ({"state": "running", "host": "elsewhere", "pid": 1}, 0.0, "running"),
        ({"state": "running", "host": "elsewhere", "pid": 1}, 3600.0, "dead?"),
        ({"state": "running", **HERE}, -60.0, "running"),
        ({"state": "running", "host": platform.node(), "pid": 2**22 + 1}, 0.0, "dead?"),
        ({}, 0.0, "?"),
    ],
)
def test_a_run_without_a_living_launcher_is_dead(status: Dict[str, Any], age_s: float, state: str) -> None:
    assert liveness({**status, "time": time.time() - age_s} if status else {}) == state


def test_a_run_whose_process_id_belongs_to_a_newer_process_is_dead() -> None:
    written = psutil.Process().create_time() - 3600
    assert liveness({"state": "running", "time": written, **HERE}) == "dead?"


def test_a_run_whose_launcher_is_a_zombie_is_dead() -> None:
    """In a container without an init process, a killed launcher stays a zombie."""
    launcher = subprocess.Popen([sys.executable, "-c", ""])
    while psutil.Process(launcher.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    status = {"state": "running", "time": time.time(), "host": platform.node(), "pid": launcher.pid}
    assert liveness(status) == "dead?"
    launcher.wait()
