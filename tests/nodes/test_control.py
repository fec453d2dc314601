"""``ftdist logs`` and ``ftdist cancel`` of a run on this machine."""

from pathlib import Path

import pytest

from ftdist.run.rundir import RunDir
from tests.helpers.cli import start
from tests.helpers.runs import BARE, wait_for_step

pytestmark = pytest.mark.timeout(900)

RUN = ("experiment=smoke", *BARE, "train.precision=fp32", "data.max_seq_len=128", "train.num_samples=0",
       "train.eval_every=null", "train.max_steps=5000", "optim.schedule=constant", "launch.timeout_s=60")  # fmt: skip


@pytest.mark.parametrize(("now", "code"), [(False, 75), (True, 1)])
def test_cancel_stops_a_local_run(now: bool, code: int, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    launcher = start("train", *RUN, f"run_dir={run.path}")
    wait_for_step(run, 3, launcher)
    follower = start("logs", "-f", "--rank", "1", str(run.path))
    done = start("cancel", *(["--now"] if now else []), str(run.path))
    said, _ = done.communicate(timeout=200)
    assert done.returncode == 0, said
    output, _ = launcher.communicate(timeout=200)
    assert launcher.returncode == code, output
    assert run.read_status()["state"] == ("failed" if now else "preempted")
    follower.communicate(timeout=30)
    assert follower.returncode == 0
    again = start("cancel", str(run.path))
    assert "a run that is under way" in again.communicate(timeout=200)[0] and again.returncode == 2
