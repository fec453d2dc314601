"""``wandb sync`` uploads a run that was recorded offline, here to a stand-in of the server."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.runs import SMOKE, copy_of, finished_run
from tests.helpers.wandb_server import receiving


@pytest.mark.slow
def test_the_history_of_an_offline_run_is_uploaded(tmp_path: Path) -> None:
    run = copy_of(finished_run(*SMOKE), tmp_path / "run")
    (folder,) = run.wandb.glob("offline-run-*")
    with receiving() as (url, history):
        env = {**os.environ, "WANDB_BASE_URL": url, "WANDB_API_KEY": "a" * 40, "WANDB_MODE": "online"}
        done = subprocess.run([sys.executable, "-m", "wandb", "sync", str(folder)], env=env, cwd=tmp_path,
                              capture_output=True, text=True, timeout=100)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    recorded = [(r["step"], r["train/loss"]) for r in run.read_metrics() if "train/loss" in r]
    assert recorded and [(r["step"], r["train/loss"]) for r in history if "train/loss" in r] == recorded
