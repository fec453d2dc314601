"""The numbers and the device of this rank, and the process group in which all ranks communicate."""

import os
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Callable, List, Optional, TypeVar

import torch
import torch.distributed as dist

from ftdist.base.errors import FtdistError, LaunchError
from ftdist.config.launch import Device
from ftdist.config.schema import RunConfig
from ftdist.parallel.collectives import record_collectives

Result = TypeVar("Result")
_KEPT: List[dist.Store] = []
"""Stores that other ranks may still read from."""


@dataclass(frozen=True)
class Ranks:
    """This process among the ranks of the run, as torchrun numbers them."""

    rank: int
    local_rank: int
    """Number of this rank on its machine."""
    world_size: int
    restart: int
    """Number of times that torchrun has restarted the ranks."""
    device: torch.device
    local_size: int = 1
    """Number of ranks on its machine."""

    @property
    def first(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0


def read_ranks(config: RunConfig) -> Ranks:
    """Return the numbers of this rank from the environment that torchrun has set.

    Without torchrun this process is the only rank.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    cuda = config.launch.device is Device.cuda
    return Ranks(
        rank=int(os.environ.get("RANK", "0")),
        local_rank=local_rank,
        world_size=int(os.environ.get("WORLD_SIZE", "1")),
        restart=int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")),
        device=torch.device("cuda", local_rank) if cuda else torch.device("cpu"),
        local_size=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
    )


def rendezvous_store(timeout_s: float) -> dist.TCPStore:
    """Connect to the store at MASTER_ADDR:MASTER_PORT. The agent of torchrun hosts it, or rank 0 without an agent."""
    agent_hosts_it = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return dist.TCPStore(
        os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), int(os.environ["WORLD_SIZE"]),
        is_master=os.environ["RANK"] == "0" and not agent_hosts_it,
        timeout=timedelta(seconds=timeout_s), multi_tenant=True,
    )  # fmt: skip


def start_process_group(config: RunConfig, ranks: Ranks) -> None:
    """Create the process group: gloo on CPU; on GPUs NCCL, and gloo for tensors in host memory. DeepSpeed adopts it.

    Each restart uses its own prefix for the keys in the store. The store of torchrun outlives a restart and still holds
    the addresses of the ranks that are gone.
    """
    import deepspeed
    import deepspeed.ops

    # DeepSpeed would compile a shared-memory all-reduce here, which training never calls. It takes 20 s and needs a
    # compiler. Without this dict it also runs the compiler to find out which operators it could build.
    deepspeed.ops.__compatible_ops__ = {"deepspeed_shm_comm": False}
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    # Without the number of local ranks, ZeRO-3 on CPU runs `numactl` at every reduction of gradients to count them.
    # That fails if a folder of PATH is not accessible.
    os.environ.setdefault("LOCAL_SIZE", os.environ.get("LOCAL_WORLD_SIZE", "1"))
    record_collectives()
    cuda = ranks.device.type == "cuda"
    if cuda:
        torch.cuda.set_device(ranks.device)
    torch.set_num_threads(config.launch.threads_per_rank or int(os.environ.get("OMP_NUM_THREADS", "1")))
    timeout = config.launch.timeout_s
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    if "MASTER_PORT" not in os.environ:  # a single process that was started without torchrun
        store: dist.Store = dist.HashStore()
    else:
        store = dist.PrefixStore(f"ftdist/attempt_{ranks.restart}", rendezvous_store(timeout))
    dist.init_process_group(backend, store=store, rank=ranks.rank, world_size=ranks.world_size,
                            timeout=timedelta(seconds=timeout))  # fmt: skip
    deepspeed.init_distributed(dist_backend="nccl" if cuda else "gloo")


def exchange_path(key: str, path: Optional[Path], timeout_s: float = 24 * 3600) -> Path:
    """Send a path from rank 0 to the other ranks, which wait for it.

    This works without a process group, so that rank 0 may first prepare data or read a large checkpoint for hours.

    Args:
        key: Key of the path in the store.
        path: The path on rank 0, None on the other ranks.

    Returns:
        The path of rank 0.

    Raises:
        LaunchError: The path does not exist on this machine.
    """
    if "MASTER_PORT" not in os.environ:
        assert path is not None  # a single process
        return path
    store = rendezvous_store(timeout_s)
    _KEPT.append(store)  # rank 0 may host it, and the others must be able to read
    if path is not None:
        store.set(key, str(path.resolve()))
        return path
    path = Path(store.get(key).decode())
    if not path.exists():
        raise LaunchError(f"{os.uname().nodename} cannot see {path}, which rank 0 wrote",
                          "a file system that all nodes share", "set runs_dir to a shared folder")  # fmt: skip
    return path


def on_rank_0(ranks: Ranks, function: Callable[[], Result]) -> Result:
    """Call a function on rank 0, and return its result on every rank. An error that it reports is raised on all ranks.

    Every rank must call it, after the process group has started.
    """
    outcome: List[Any] = [None, None]
    if ranks.first:
        try:
            outcome = [function(), None]
        except FtdistError as error:
            outcome = [None, error]
    if ranks.world_size > 1:
        dist.broadcast_object_list(outcome, src=0, device=ranks.device if ranks.device.type == "cuda" else None)
    if outcome[1] is not None:
        raise outcome[1]
    result: Result = outcome[0]
    return result
