"""A rank that dies on a live machine: torchrun starts all again, and they go on from the last checkpoint."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, List

import psutil
import pytest

from ftdist.run.rundir import RunDir

pytestmark = pytest.mark.timeout(300)

RUN = ("experiment=smoke", "track=disabled", "train.precision=fp32", "data.max_seq_len=128", "train.num_samples=0",
       "train.export=false", "train.eval_every=null", "train.max_steps=150", "train.checkpoint_every=20",
       "launch.timeout_s=60")  # fmt: skip


def start(run: RunDir, *more: str) -> "subprocess.Popen[str]":
    return subprocess.Popen([sys.executable, "-m", "ftdist", "train", *RUN, *more, f"run_dir={run.path}"], text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip


def kill_rank_1(run: RunDir, launcher: "subprocess.Popen[str]", after_step: int) -> None:
    deadline = time.monotonic() + 120
    while int(run.read_status().get("step", 0)) < after_step:
        assert time.monotonic() < deadline and launcher.poll() is None
        time.sleep(0.05)
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
    whole, broken = RunDir(tmp_path / "whole"), RunDir(tmp_path / "broken")
    start(whole).communicate(timeout=120)
    launcher = start(broken, "launch.max_restarts=1")
    kill_rank_1(broken, launcher, 30)
    output, _ = launcher.communicate(timeout=120)
    assert launcher.returncode == 0, output
    assert "resumed after step" in output and broken.read_status()["attempt"] == 1
    assert len(metrics(whole)) == 152 and metrics(broken) == metrics(whole)


def test_without_restarts_it_fails_and_says_who_was_killed(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    launcher = start(run)
    kill_rank_1(run, launcher, 3)
    output, _ = launcher.communicate(timeout=120)
    assert launcher.returncode == 1 and re.search("rank 1 on .+ was killed by SIGKILL", output)
    assert run.read_status()["state"] == "failed"
