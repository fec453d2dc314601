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
STARTED = psutil.Process().create_time()


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ({"state": "done"}, "done"),
        ({"state": "running", "time": time.time(), "host": "elsewhere", "pid": 1}, "running"),
        ({"state": "running", "time": time.time() - 3600, "host": "elsewhere", "pid": 1}, "dead?"),
        ({"state": "running", "time": time.time() + 60, "host": platform.node(), "pid": os.getpid()}, "running"),
        ({"state": "running", "time": STARTED - 3600, "host": platform.node(), "pid": os.getpid()}, "dead?"),
        ({"state": "running", "time": time.time(), "host": platform.node(), "pid": 2**22 + 1}, "dead?"),
        ({}, "?"),
    ],
)
def test_a_run_without_a_living_launcher_is_dead(status: Dict[str, Any], state: str) -> None:
    assert liveness(status) == state


def test_a_run_whose_launcher_is_a_zombie_is_dead() -> None:
    """In a container without an init process, a killed launcher stays a zombie."""
    launcher = subprocess.Popen([sys.executable, "-c", ""])
    while psutil.Process(launcher.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    status = {"state": "running", "time": time.time(), "host": platform.node(), "pid": launcher.pid}
    assert liveness(status) == "dead?"
    launcher.wait()
