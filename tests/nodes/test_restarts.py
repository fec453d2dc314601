"""A killed rank: torchrun restarts all ranks, and they continue from the last checkpoint."""

import os
import re
import signal
import subprocess
from pathlib import Path
from typing import Any, Dict, List

import psutil
import pytest

from ftdist.run.rundir import RunDir
from tests.helpers.cli import start
from tests.helpers.runs import BARE, reference_run, wait_for_step

pytestmark = pytest.mark.timeout(900)

RUN = ("experiment=smoke", *BARE, "train.precision=fp32", "data.max_seq_len=128", "train.num_samples=0",
       "train.export=false", "train.eval_every=null", "train.max_steps=80", "train.checkpoint_every=10",
       "launch.timeout_s=60")  # fmt: skip


def kill_rank_1(run: RunDir, launcher: "subprocess.Popen[str]", after_step: int) -> None:
    wait_for_step(run, after_step, launcher)
    for process in psutil.Process(launcher.pid).children(recursive=True):
        if process.environ().get("RANK") == "1":
            os.kill(process.pid, signal.SIGKILL)
            return
    raise AssertionError("no rank 1")


def metrics(run: RunDir) -> List[Dict[str, Any]]:
    return [
        {k: v for k, v in r.items() if k in ("step", "train/loss", "eval/heldout/loss")} for r in run.read_metrics()
    ]


def test_a_killed_rank_is_restarted_from_the_last_checkpoint(tmp_path: Path) -> None:
    whole, broken = reference_run(*RUN), RunDir(tmp_path / "broken")
    launcher = start("train", *RUN, f"run_dir={broken.path}", "launch.max_restarts=1")
    kill_rank_1(broken, launcher, 15)
    output, _ = launcher.communicate(timeout=400)
    assert launcher.returncode == 0, output
    assert "resumed after step" in output and broken.read_status()["attempt"] == 1
    assert len(metrics(whole)) == 82 and metrics(broken) == metrics(whole)


def test_without_restarts_the_run_fails_and_names_the_killed_rank(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    launcher = start("train", *RUN, f"run_dir={run.path}")
    kill_rank_1(run, launcher, 3)
    output, _ = launcher.communicate(timeout=400)
    assert launcher.returncode == 1 and re.search("rank 1 on .+ was killed by SIGKILL", output)
    assert run.read_status()["state"] == "failed"
