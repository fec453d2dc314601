"""What a rank is: its numbers, its device, its output, the process group, and how it ends."""

import os
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Optional

import torch
import torch.distributed as dist

from ftdist.base.errors import LaunchError
from ftdist.config.schema import Device, RunConfig
from ftdist.parallel.collectives import record_collectives


@dataclass(frozen=True)
class Ranks:
    """This process among the ranks of the run, as torchrun numbers them."""

    rank: int
    local_rank: int
    world_size: int
    restart: int
    device: torch.device

    @property
    def first(self) -> bool:
        return self.rank == 0


def read_ranks(config: RunConfig) -> Ranks:
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    cuda = config.launch.device is Device.cuda
    return Ranks(
        rank=int(os.environ.get("RANK", "0")),
        local_rank=local_rank,
        world_size=int(os.environ.get("WORLD_SIZE", "1")),
        restart=int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")),
        device=torch.device("cuda", local_rank) if cuda else torch.device("cpu"),
    )


def rendezvous_store(timeout_s: float) -> dist.TCPStore:
    """The store at MASTER_ADDR:MASTER_PORT; torchrun's agent holds it, else rank 0 does."""
    agent_holds_it = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return dist.TCPStore(
        os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), int(os.environ["WORLD_SIZE"]),
        is_master=os.environ["RANK"] == "0" and not agent_holds_it,
        timeout=timedelta(seconds=timeout_s), multi_tenant=True,
    )  # fmt: skip


def start_process_group(config: RunConfig, ranks: Ranks) -> None:
    """Gloo on CPU, NCCL (with gloo for host tensors) on CUDA; adopted by DeepSpeed.

    The keys of each attempt have a prefix of their own: torchrun's store outlives a restart and still holds the
    addresses of ranks that are gone.
    """
    import deepspeed
    import deepspeed.ops

    # DeepSpeed would compile a shared-memory all-reduce here (20 s, needs a compiler) that training never calls.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    # Ranks here. On CPU ZeRO-3 would else run `numactl` at every reduction of gradients to count them, and fail where a
    # folder of PATH may not be searched.
    os.environ.setdefault("LOCAL_SIZE", os.environ.get("LOCAL_WORLD_SIZE", "1"))
    record_collectives()
    cuda = ranks.device.type == "cuda"
    if cuda:
        torch.cuda.set_device(ranks.device)
    torch.set_num_threads(config.launch.threads_per_rank or int(os.environ.get("OMP_NUM_THREADS", "1")))
    timeout = config.launch.timeout_s
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    if "MASTER_PORT" not in os.environ:  # a single process, started without torchrun
        store: dist.Store = dist.HashStore()
    else:
        store = dist.PrefixStore(f"ftdist/attempt_{ranks.restart}", rendezvous_store(timeout))
    dist.init_process_group(backend, store=store, rank=ranks.rank, world_size=ranks.world_size,
                            timeout=timedelta(seconds=timeout))  # fmt: skip
    deepspeed.init_distributed(dist_backend="nccl" if cuda else "gloo")


def exchange_path(key: str, path: Optional[Path], timeout_s: float = 24 * 3600) -> Path:
    """Rank 0 gives a path, the others (None) wait for it. There is no process group yet, so that rank 0 may prepare
    data or read a large checkpoint for hours.

    Raises:
        LaunchError: the path is not visible on this machine.
    """
    if "MASTER_PORT" not in os.environ:
        assert path is not None  # a single process
        return path
    store = rendezvous_store(timeout_s)
    if path is not None:
        store.set(key, str(path.resolve()))
        return path
    path = Path(store.get(key).decode())
    if not path.exists():
        raise LaunchError(f"{os.uname().nodename} does not see {path}, which rank 0 wrote",
                          "a file system that all nodes share", "set runs_dir to a shared folder")  # fmt: skip
    return path
