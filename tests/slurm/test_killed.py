"""A pytest that is killed leaves no cluster, no job and no launcher behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import List

import pytest

from tests.helpers.reaper import find_left

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
INSIDE = """\
import time
from pathlib import Path

import pytest

from tests.slurm.conftest import cluster, slurm

pytestmark = pytest.mark.slurm


def test_that_is_killed(slurm, tmp_path):
    job = slurm.run("sbatch", "--parsable", "--output=/dev/null", "--wrap=sleep 1000").strip()
    words = ("launch.slurm.options=[--hold]", "launch.wait=true", f"run_dir={tmp_path / 'run'}")
    slurm.ftdist("train", "experiment=smoke", "launch=slurm", "launch.device=cpu", *map(str, words))
    slurm.wait(lambda: slurm.job(job)["JobState"] == "RUNNING", 30, "the job")
    slurm.wait(lambda: len(slurm.run("squeue", "-h").split(chr(10))) == 3, 60, "the queued run")
    Path("@@SEEN@@").write_text(str(slurm.base))
    time.sleep(600)
"""


def left_of(base: str) -> List[int]:
    """Return the processes of a cluster: daemons, jobs and commands."""
    return find_left({os.fsencode(f"SLURM_CONF={base}/slurm.conf")}, [base])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_pytest_leaves_nothing(number: int, tmp_path: Path) -> None:
    seen, file = tmp_path / "seen", tmp_path / "test_inside.py"
    file.write_text(INSIDE.replace("@@SEEN@@", str(seen)))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", "-p",
               "tests.conftest", f"--rootdir={ROOT}", f"--basetemp={tmp_path / 'temporary'}", str(file)]  # fmt: skip
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
    deadline = time.monotonic() + 200
    while not seen.exists():
        assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
        time.sleep(0.1)
    base = seen.read_text()
    names = {Path(f"/proc/{pid}/comm").read_text().strip() for pid in left_of(base)}
    assert {"slurmctld", "slurmd", "slurmstepd", "munged", "sleep"} <= names, names
    process.send_signal(number)
    process.wait()
    while left := left_of(base):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
    while Path(base).exists():
        assert time.monotonic() < deadline, base
        time.sleep(0.1)
