"""The options of sbatch that a config asks for, and what the user's own options replace."""

from typing import List, Optional

import pytest

from ftdist.config.launch import Device, GpuOption, check_launch
from ftdist.launch.backends.slurm import script
from tests.unit.launch.backends.slurm.test_script import resolved


@pytest.mark.parametrize(
    ("how", "kind", "options", "asked"),
    [
        ("gpus_per_node", None, [], ["--gpus-per-node=8"]),
        ("gpus_per_node", "h100", [], ["--gpus-per-node=h100:8"]),
        ("gres", None, [], ["--gres=gpu:8"]),
        ("gres", "h100", [], ["--gres=gpu:h100:8"]),
        ("gpus", None, [], ["--gpus=16"]),
        ("gpus", "a100", [], ["--gpus=a100:16"]),
        ("gpus_per_task", None, [], ["--gpus-per-task=8"]),
        ("none", "h100", [], []),
        ("gpus_per_node", None, ["--gres=gpu:h100:8"], ["--gres=gpu:h100:8"]),  # the user's option replaces ours
        ("gres", None, ["--gpus=4"], ["--gpus=4"]),
        ("gpus_per_node", None, ["--gpus-per-socket=2"], ["--gpus-per-socket=2"]),
        ("gres", None, ["--tres-per-task=gres:gpu:1"], ["--tres-per-task=gres:gpu:1"]),
        ("gres", None, ["--gres=none"], []),
        ("gpus_per_node", None, ["--gres=nvme:1"], ["--gpus-per-node=8"]),  # something else than GPUs
        ("gres", "h100", ["--gres=nvme:1"], ["--gres=nvme:1,gpu:h100:8"]),
    ],
)
def test_each_way_to_ask_for_gpus_has_its_option(
    how: str, kind: Optional[str], options: List[str], asked: List[str]
) -> None:
    config = resolved(device=Device.cuda, nnodes=2, nproc_per_node=8)
    slurm = config.launch.slurm
    slurm.gpus, slurm.gpu_type, slurm.options = GpuOption[how], kind, options
    assert [option for option in script.sbatch_options(config) if "gpu" in option] == asked


@pytest.mark.parametrize(
    "option",
    ["--exclude=n[1-3]", "--dependency=afterok:7", "--licenses=x", "--gres=gpu:2,nvme:1", "--qos=high",
     "--mail-user=me", "--constraint=a&b", "--reservation=mine", "--comment=it's", "--switches=1@10:00",
     "--contiguous"],
)  # fmt: skip
def test_any_other_option_of_sbatch_is_passed_through(option: str) -> None:
    config = resolved(options=[option], qos="low", constraint="c", reservation="theirs", mail_user="you")
    check_launch(config.launch)
    name = option.split("=")[0]
    assert [line for line in script.sbatch_options(config) if line.split("=")[0] == name] == [option]


@pytest.mark.parametrize(
    ("option", "like"),
    [
        ("--cpus-per-task=7", "--cpus"), ("--cpus-per-gpu=7", "--cpus"), ("--job-name=x", "--job"),
        ("--time=2:00:00", "--ti"), ("--ti=2:00:00", "--ti"), ("--mem=0", "--mem"), ("--mem-per-cpu=2G", "--mem"),
        ("--mem-per-gpu=2G", "--mem"),
    ],
)  # fmt: skip
def test_an_option_of_the_user_replaces_ours(option: str, like: str) -> None:
    config = resolved(device=Device.cpu, nproc_per_node=1, cpus_per_node=4, mem="9G", time="90", options=[option])
    check_launch(config.launch)
    assert [found for found in script.sbatch_options(config) if found.startswith(like)] == [option]
