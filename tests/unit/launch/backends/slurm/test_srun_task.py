"""Which processes are tasks of the user's srun, and what they see."""

from typing import Dict, Optional

import pytest

from ftdist.base.errors import ConfigError
from ftdist.config.launch import LaunchConfig
from ftdist.launch.backends.slurm import srun_task
from ftdist.launch.verbs import under_torchrun

TASK = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4"}
NAMES = (*TASK, "TORCHELASTIC_RUN_ID", "RANK", "WANDB_SWEEP_ID", "CUDA_VISIBLE_DEVICES", "SLURM_CPUS_PER_TASK")


@pytest.mark.parametrize(
    ("environ", "task", "rank"),
    [
        (TASK, True, True),
        ({**TASK, "TORCHELASTIC_RUN_ID": "srun-7.0", "RANK": "3"}, True, True),  # it has taken torchrun's names
        ({**TASK, "SLURM_STEP_NUM_TASKS": "1"}, False, False),  # srun --pty, or one task a node of one node
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, False, False),  # a batch script
        ({**TASK, "TORCHELASTIC_RUN_ID": "x", "RANK": "0"}, False, True),  # torchrun under srun
        ({**TASK, "WANDB_SWEEP_ID": "x"}, False, False),  # an agent: each task runs its own trials
    ],
)
def test_what_is_a_rank(environ: Dict[str, str], task: bool, rank: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    _set(monkeypatch, environ)
    assert (srun_task.is_task(), under_torchrun.is_rank()) == (task, rank)
    assert under_torchrun.is_first_rank() == (environ.get("RANK") == "0" or not rank)


def _set(monkeypatch: pytest.MonkeyPatch, environ: Dict[str, str]) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("environ", "here", "unused"),
    [
        ({"SLURM_JOB_NODELIST": "gpu[1-2]"}, "login", "gpu[1-2]"),
        ({"SLURM_JOB_NODELIST": "gpu1"}, "login", "gpu1"),
        ({"SLURM_JOB_NODELIST": "gpu1"}, "gpu1.cluster", None),  # salloc was typed on the node
        ({"SLURM_JOB_NODELIST": "gpu1", "SLURMD_NODENAME": "gpu1"}, "another-name", None),  # a batch script
        ({"SLURM_JOB_NODELIST": "gpu[1-2]", "SLURMD_NODENAME": "gpu1"}, "gpu1", "gpu[1-2]"),
        ({"SLURM_JOB_NODELIST": "gpu[1-2]", "SLURM_STEP_NODELIST": "gpu2", "SLURMD_NODENAME": "gpu2"}, "gpu2", None),
        ({"SLURM_JOB_NODELIST": "gpu[1-2]", "SLURMD_NODENAME": "gpu1", "TORCHELASTIC_RUN_ID": "x"}, "gpu1", None),
        ({}, "login", None),
    ],
)
def test_nodes_of_a_job_that_a_run_does_not_use_are_named(
    environ: Dict[str, str], here: str, unused: Optional[str], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for name in ("SLURM_JOB_NODELIST", "SLURM_STEP_NODELIST", "SLURMD_NODENAME"):
        monkeypatch.delenv(name, raising=False)
    _set(monkeypatch, {"SLURM_JOB_ID": "7", **environ})
    monkeypatch.setattr(srun_task.platform, "node", lambda: here)
    srun_task.note_unused_nodes()
    said = capsys.readouterr().err
    assert said.startswith(f"note: job 7 has {unused}, but the run uses {here} only. ") if unused else not said


def test_tasks_on_each_node() -> None:
    assert (srun_task.tasks_per_node("2(x4)"), srun_task.tasks_per_node("8")) == (2, 8)
    with pytest.raises(ConfigError, match="different numbers of tasks on nodes: 2,1"):
        srun_task.tasks_per_node("2,1")


def test_a_task_that_sees_one_gpu_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(srun_task, "visible_gpus", lambda: ["H100"])
    _set(monkeypatch, {**TASK, "CUDA_VISIBLE_DEVICES": "3"})
    assert srun_task.has_own_gpu()
    _set(monkeypatch, TASK)  # nobody has chosen it for the task
    assert not srun_task.has_own_gpu()


def test_the_threads_of_a_task_are_those_of_its_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    _set(monkeypatch, {**TASK, "SLURM_CPUS_PER_TASK": "1"})
    launch = LaunchConfig(nproc_per_node=8)
    srun_task.set_threads(launch)
    assert launch.threads_per_rank == 1
    launch = LaunchConfig(threads_per_rank=5)
    srun_task.set_threads(launch)
    assert launch.threads_per_rank == 5
