"""The moments at which the batch script calls back: what is written, and whether the job goes on."""

import argparse
import subprocess
from pathlib import Path

import pytest

from ftdist.config import Device, LaunchKind, RunConfig, dump_config
from ftdist.errors import EXIT_PREEMPTED
from ftdist.launch import batch, sbatch
from ftdist.rundir import RunDir


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A run that job 7 is to begin."""
    run, config = RunDir(tmp_path / "run"), RunConfig(run_dir=str(tmp_path / "run"), cache_dir=str(tmp_path))
    launch = config.launch
    launch.kind, launch.device, launch.nproc_per_node, launch.max_requeues = LaunchKind.slurm, Device.cpu, 1, 2
    launch.slurm.modules = ["slow"]
    run.logs.mkdir(parents=True)
    run.config.write_text(dump_config(config), encoding="utf-8")
    run.submit.write_text(sbatch.render(config), encoding="utf-8")
    run.write_status(state="queued", attempt=-1, job_id="7", requeues=0)
    return run


def begin(run: RunDir) -> int:
    return batch.begin(argparse.Namespace(run_dir=str(run.path), job="7"))


def end(run: RunDir, code: int = 0, asked: bool = False, ended: bool = False) -> int:
    return batch.end(argparse.Namespace(run_dir=str(run.path), job="7", code=code, asked=asked, ended=ended))


def test_a_run_that_was_asked_to_stop_does_not_begin(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    run.cancel.touch()
    assert begin(run) == end(run, code=EXIT_PREEMPTED) == EXIT_PREEMPTED
    status = run.read_status()
    assert (status["state"], status["exit_reason"]) == ("preempted", "cancelled before it began")
    assert not run.attempt.exists() and not capsys.readouterr().out


def test_a_stop_that_is_asked_for_while_modules_are_loaded_holds(run: RunDir) -> None:
    run.preempt.touch()  # of before
    script = run.submit.read_text()
    before_ranks = script[: script.index("on_first_node _begin")]
    module = f'module() {{ [ ! -e "{run.preempt}" ] && touch "{run.preempt}"; }}\n'
    subprocess.run(
        ["bash", "-c", module + before_ranks], env={"SLURM_JOB_ID": "7", "PATH": "/usr/bin:/bin"}, check=True
    )
    assert run.preempt.exists()
