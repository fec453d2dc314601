"""On a GPU the losses of the smoke experiment follow those on the CPU, in every ZeRO stage."""

import subprocess
import sys
from pathlib import Path
from typing import List

import pytest

from ftdist.run.rundir import RunDir

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]


def _losses(run_dir: Path, *overrides: str) -> List[float]:
    command = [sys.executable, "-m", "ftdist", "train", "experiment=smoke", f"run_dir={run_dir}", *overrides]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return [r["train/loss"] for r in RunDir(run_dir).read_metrics() if "train/loss" in r]


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_gpu_run_follows_the_cpu_run(tmp_path: Path, stage: int) -> None:
    one = ("launch.nproc_per_node=1", "track=disabled", f"zero.stage={stage}")
    on_gpu = _losses(tmp_path / "gpu", "launch.device=cuda", *one)
    on_cpu = _losses(tmp_path / "cpu", "launch.device=cpu", *one)
    assert on_gpu == pytest.approx(on_cpu, rel=2e-2)
