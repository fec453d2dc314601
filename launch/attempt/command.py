"""LaunchPlan: the one seam between what a run is and how it is started. Everything here is pure."""

import shlex
import sys
from dataclasses import dataclass
from typing import Dict, List

from ftdist.config.schema import Device, RunConfig

KERNELS_KEPT = 128
"""Kernels that a rank on CPU keeps compiled, see ``ranks_env``."""


@dataclass(frozen=True)
class LaunchPlan:
    """A command and what it needs in its environment besides what is there."""

    argv: List[str]
    env: Dict[str, str]

    def shell(self) -> str:
        """The command as it can be typed."""
        return " ".join([*(f"{name}={shlex.quote(value)}" for name, value in self.env.items()), shlex.join(self.argv)])


def ranks_env(config: RunConfig) -> Dict[str, str]:
    """What every rank needs in its environment."""
    # Python would look for modules in the current folder first: in a model's or a data set's that is theirs.
    env = {"TOKENIZERS_PARALLELISM": "false", "PYTHONSAFEPATH": "1"}
    if config.launch.threads_per_rank is not None:
        env = {"OMP_NUM_THREADS": str(config.launch.threads_per_rank), **env}
    if config.launch.device is Device.cpu:
        env |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
        # For bf16, oneDNN compiles a kernel for each shape of a matrix product, and rows and documents have many
        # lengths. It keeps 1024 of them, at 0.4 MiB each, and PyTorch as many once more: memory seemed to leak. A step
        # is as fast with fewer. Both are read when torch is imported.
        env |= dict.fromkeys(("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"), str(KERNELS_KEPT))
    return env


def plan_local(config: RunConfig, module: str, arguments: List[str]) -> LaunchPlan:
    """How to start ``module`` on the ranks of a resolved config, all on this machine."""
    restarts = ["--max-restarts", str(config.launch.max_restarts)] if config.launch.max_restarts else []
    argv = [
        sys.executable, "-m", "torch.distributed.run", "--standalone",
        "--nproc-per-node", str(config.launch.nproc_per_node), *restarts, "-m", module, *arguments,
    ]  # fmt: skip
    return LaunchPlan(argv, ranks_env(config))
