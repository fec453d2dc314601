"""What a rank is: its numbers, its device, its output, the process group, and how it ends."""

import json
import os
import resource
import sys
import time
import traceback
import warnings
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Dict, List, NoReturn, Optional, TextIO, cast

import torch
import torch.distributed as dist

from ftdist.base.errors import EXIT_FAILED, FtdistError, LaunchError
from ftdist.base.redact import redact
from ftdist.base.terminal import Tee
from ftdist.config.schema import Device, RunConfig
from ftdist.parallel.collectives import record_collectives
from ftdist.run.rundir import RunDir


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


def reduce_sum(values: List[float], device: torch.device) -> List[float]:
    """Sum a few numbers over all ranks, in float64."""
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(tensor)
    return tensor.tolist()


def peak_memory_gib(device: torch.device) -> float:
    """Peak memory of this rank: allocated on the GPU, or resident on CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def quiet_libraries() -> None:
    """Silence what the user can do nothing about."""
    import logging

    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    for what_will_change in (FutureWarning, DeprecationWarning):  # in calls of libraries by each other, and ours
        warnings.simplefilter("ignore", what_will_change)
    warnings.filterwarnings("ignore", message=r".*(all_gather_into_tensor|reduce_scatter_tensor).*")


def redirect_output(run: RunDir, rank: int, attempt: int) -> None:
    """Standard error and output of every rank go to its log file; what rank 0 prints also stays where it was."""
    run.logs.mkdir(exist_ok=True)
    log = os.open(run.log_file(rank, attempt), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o666)
    sys.stderr.flush()
    os.dup2(log, 2)
    sys.stdout.flush()
    if rank:
        os.dup2(log, 1)
    else:
        sys.stdout = cast(TextIO, Tee(sys.stdout, os.fdopen(os.dup(log), "a", buffering=1, encoding="utf-8")))
    os.close(log)


def record_failure(
    run: RunDir, rank: int, attempt: int, error: BaseException, instead: Optional[Dict[str, Any]] = None
) -> int:
    """Leave the error where the launcher finds it, once; ``instead`` is the record of another rank that it is due to.
    Returns the exit code."""
    code = error.exit_code if isinstance(error, FtdistError) else EXIT_FAILED
    if run.error_file(rank, attempt).exists():
        return code
    text = str(error) if isinstance(error, FtdistError) else f"{type(error).__name__}: {error}"
    text, trace = redact(text), redact(traceback.format_exc())
    record = {"rank": rank, "host": os.uname().nodename, "time": time.time(), "message": text, "traceback": trace,
              "known": isinstance(error, FtdistError), "exit_code": code}  # fmt: skip
    record = {**(instead or record), "traceback": trace}
    run.error_file(rank, attempt).write_text(json.dumps(record, indent=2), encoding="utf-8")
    print(trace, file=sys.stderr)
    return code


def leave(code: int, in_step: bool) -> NoReturn:
    """End this process at once.

    After DeepSpeed has used gloo, its threads can outlive the process group and abort the interpreter's own exit, so
    that a run that succeeded would look failed. ``in_step``: all ranks end here, wait for each other.
    """
    if in_step and dist.is_initialized():
        dist.barrier()
        time.sleep(0.3)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


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
