"""What happens on each node of a Slurm job before torchrun starts."""

import os
from typing import Dict, Optional

import pytest

from ftdist.base.process import RANK_CPUS
from ftdist.config.schema import Device, LaunchConfig
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
    assert ("note: n1 has less than one CPU for each rank" in capsys.readouterr().out) == note


def test_ranks_are_bound_to_the_cpus_that_the_job_has_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = os.sched_getaffinity(0)
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", str(len(mine)))
    monkeypatch.setenv(RANK_CPUS, "")
    monkeypatch.setenv("OMP_NUM_THREADS", "")
    divide_cpus(LaunchConfig(device=Device.cpu, nproc_per_node=1), "n1")
    assert os.environ[RANK_CPUS] == ",".join(map(str, sorted(mine)))
