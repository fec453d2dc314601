"""What happens on each node of a Slurm job before torchrun starts."""

import os
from typing import Dict, Optional

import pytest

from ftdist.base.counts import count
from ftdist.base.process import RANK_CPUS
from ftdist.config.launch import Device, LaunchConfig, SlurmConfig
from ftdist.launch.verbs.start_node import divide_cpus


@pytest.mark.parametrize(
    ("slurm", "set_threads", "threads", "note"),
    [
        ({"SLURM_CPUS_PER_TASK": "1"}, None, "1", True),
        ({"SLURM_CPUS_ON_NODE": "1"}, None, "1", True),
        ({"SLURM_CPUS_PER_TASK": "1"}, 3, "7", True),  # the config decides: the ranks read it
    ],
)
def test_threads_follow_from_what_slurm_has_granted(
    slurm: Dict[str, str], set_threads: Optional[int], threads: str, note: bool, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for name in ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE", RANK_CPUS):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")  # of the user's shell
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)
    divide_cpus(LaunchConfig(device=Device.cpu, nproc_per_node=2, threads_per_rank=set_threads), "n1")
    assert os.environ["OMP_NUM_THREADS"] == threads and not os.environ[RANK_CPUS]
    said = capsys.readouterr()
    assert ("note: n1 has less than one CPU for each rank" in said.out) == note
    assert f"and {count(set_threads or 1, 'thread')} for each rank" in said.err


@pytest.mark.parametrize(
    ("each", "said"),
    [(1, "launch.slurm.cpus_per_gpu=2 asks for more"), (2, "The job asked for 4 CPUs on each node, but can use fewer")],
)
def test_the_note_about_few_cpus_does_not_propose_what_was_asked_for(
    each: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("SLURM_CPUS_PER_TASK", "2"), (RANK_CPUS, ""), ("OMP_NUM_THREADS", "")):
        monkeypatch.setenv(name, value)
    slurm = SlurmConfig(cpus_per_gpu=each)
    divide_cpus(LaunchConfig(device=Device.cpu, nproc_per_node=2, slurm=slurm), "n1")
    assert f"note: n1 has 1 CPU for each rank; it may be slow. {said}" in capsys.readouterr().out


def test_ranks_are_bound_to_the_cpus_that_the_job_has_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = os.sched_getaffinity(0)
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", str(len(mine)))
    monkeypatch.setenv(RANK_CPUS, "")
    monkeypatch.setenv("OMP_NUM_THREADS", "")
    divide_cpus(LaunchConfig(device=Device.cpu, nproc_per_node=1), "n1")
    assert os.environ[RANK_CPUS] == ",".join(map(str, sorted(mine)))
