"""The command that starts ranks, and its environment."""

import subprocess
from typing import Any

from ftdist.config.launch import Device
from ftdist.config.schema import RunConfig
from ftdist.launch.attempt.command import Rendezvous, plan_local, rank_program, torchrun_command


def resolved(**launch: Any) -> RunConfig:
    config = RunConfig()
    for name, value in {"device": Device.cpu, "nproc_per_node": 2, "threads_per_rank": 3, **launch}.items():
        setattr(config.launch, name, value)
    return config


def test_the_command_is_printed_with_quotes_for_a_shell() -> None:
    plan = plan_local(resolved(), "ftdist.train.main", "/runs/a b")
    assert plan.argv[1:] == ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
                             "-m", "ftdist.train.main", "/runs/a b"]  # fmt: skip
    assert plan.env["OMP_NUM_THREADS"] == "3" and plan.env["DS_ACCELERATOR"] == "cpu"
    assert plan.env["CUDA_VISIBLE_DEVICES"] == ""
    typed = subprocess.run(["bash", "-c", "printf '%s\\n' " + plan.shell().split("-m ftdist.train.main", 1)[1]],
                           capture_output=True, text=True, check=True)  # fmt: skip
    assert typed.stdout == "/runs/a b\n"
    assert plan.shell().startswith("OMP_NUM_THREADS=3 ")


def test_ranks_on_gpus_see_the_gpus() -> None:
    env = plan_local(resolved(device=Device.cuda), "m").env
    assert "CUDA_VISIBLE_DEVICES" not in env and "DS_ACCELERATOR" not in env


def test_ranks_of_several_machines_meet_at_an_endpoint() -> None:
    config = resolved(nnodes=3, max_restarts=2)
    rendezvous = Rendezvous("n1:29500", "abc.4", is_host="1", join_timeout_s=60, own="10.0.0.1")
    assert torchrun_command(config.launch, rank_program("/runs/a", 4), rendezvous, python="python3") == [
        "python3", "-m", "torch.distributed.run", "--nnodes", "3", "--nproc-per-node", "2", "--max-restarts", "2",
        "--rdzv-backend", "c10d", "--rdzv-endpoint", "n1:29500", "--rdzv-id", "abc.4",
        "--rdzv-conf", "is_host=1,join_timeout=60", "--local-addr", "10.0.0.1",
        "-m", "ftdist.train.main", "/runs/a", "--attempt", "4",
    ]  # fmt: skip
