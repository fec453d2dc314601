"""Build the command that starts ranks, and the environment that they need. Nothing is started here.

Ranks are started in four places: ``attempt/torchrun.py`` (torchrun on this machine),
``backends/deepspeed.py`` (DeepSpeed's launcher), ``verbs/start_node.py`` (torchrun on each node of a Slurm job) and
``verbs/under_torchrun.py`` (a torchrun that the user started).
"""

import sys
from dataclasses import dataclass
from typing import Dict, List, Optional

from ftdist.base.shell import shell_word, shell_words
from ftdist.config.launch import Device, LaunchConfig
from ftdist.config.schema import RunConfig
from ftdist.run.hub import offline_env

KERNELS_KEPT = 128
"""Number of compiled kernels that a rank on CPU keeps. See ``ranks_env``."""


@dataclass(frozen=True)
class LaunchPlan:
    """A command, and the variables that it needs in addition to the current environment."""

    argv: List[str]
    env: Dict[str, str]

    def shell(self) -> str:
        """Return the command as one line for a shell."""
        return " ".join([*(f"{name}={shell_word(value)}" for name, value in self.env.items()), shell_words(self.argv)])


@dataclass(frozen=True)
class Rendezvous:
    """How the torchrun agents of several machines find each other. The values are words of a command."""

    endpoint: str
    """``HOST:PORT`` of the first machine."""
    id: str
    """A name that only the agents of this attempt share."""
    is_host: str
    """``1`` on the first machine, ``0`` on the others."""
    join_timeout_s: int
    own: Optional[str] = None
    """The address at which the other machines reach this one. None: the address that its host name resolves to."""

    def options(self) -> List[str]:
        """Return the options for torchrun."""
        conf = f"is_host={self.is_host},join_timeout={self.join_timeout_s}"
        own = ["--local-addr", self.own] if self.own else []
        return ["--rdzv-backend", "c10d", "--rdzv-endpoint", self.endpoint, "--rdzv-id", self.id, "--rdzv-conf", conf,
                *own]  # fmt: skip


def ranks_env(config: RunConfig) -> Dict[str, str]:
    """Return the environment variables that every rank needs."""
    # Without PYTHONSAFEPATH, Python first looks for modules in the current folder. A model's or data set's folder may
    # hold files with the names of modules.
    env = {"TOKENIZERS_PARALLELISM": "false", "PYTHONSAFEPATH": "1"}
    if config.launch.threads_per_rank is not None:
        env = {"OMP_NUM_THREADS": str(config.launch.threads_per_rank), **env}
    if config.launch.device is Device.cpu:
        env |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
        # For bf16, oneDNN compiles one kernel for each shape of a matrix product, and rows and documents have many
        # lengths. By default oneDNN and PyTorch each keep 1024 kernels of about 0.4 MiB, which looks like a memory
        # leak. With fewer kernels the steps are as fast. Both variables are read when torch is imported.
        env |= dict.fromkeys(("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"), str(KERNELS_KEPT))
    return env | offline_env(config)


def rank_program(run_dir: str, attempt: int | str) -> List[str]:
    """Return the module that each rank of a run executes, and its arguments."""
    return ["ftdist.train.main", run_dir, "--attempt", str(attempt)]


def torchrun_command(
    launch: LaunchConfig, program: List[str], rendezvous: Optional[Rendezvous] = None, python: Optional[str] = None
) -> List[str]:
    """Return the command that starts the ranks of one machine through torchrun.

    Args:
        launch: resolved settings: ``nproc_per_node`` is set.
        program: the module that each rank executes, and its arguments.
        rendezvous: how the agents of ``launch.nnodes`` machines meet. None if the run uses this machine only.
        python: the interpreter. Defaults to the one that runs this code.
    """
    machines = ["--standalone"] if rendezvous is None else ["--nnodes", str(launch.nnodes)]
    restarts = ["--max-restarts", str(launch.max_restarts)] if launch.max_restarts else []
    return [
        python or sys.executable, "-m", "torch.distributed.run", *machines,
        "--nproc-per-node", str(launch.nproc_per_node), *restarts,
        *(rendezvous.options() if rendezvous else []), "-m", *program,
    ]  # fmt: skip


def plan_local(config: RunConfig, module: str, *arguments: str) -> LaunchPlan:
    """Plan to execute a module on the ranks of a resolved config, all on this machine."""
    return LaunchPlan(torchrun_command(config.launch, [module, *arguments]), ranks_env(config))
