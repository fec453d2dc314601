"""``srun --ntasks-per-node=2 ftdist train …``: the user's srun starts one task for each rank.

Some sites allow nothing else, and submitit starts programs in this way. The tasks connect to each other, set the
environment variables that torchrun would set, and then do what they do under torchrun. No other process watches the
ranks, so each task ends its rank when a task that it is connected to has ended.
"""

import contextlib
import os
import platform
import re
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import List, Optional

import psutil

from ftdist.base.errors import ConfigError, LaunchError
from ftdist.config.launch import LaunchConfig
from ftdist.launch.attempt.machine import cpu_cores, visible_gpus
from ftdist.launch.backends.slurm import meeting
from ftdist.launch.backends.slurm.client import run_command
from ftdist.launch.backends.slurm.hostlist import expand

JOIN_TIMEOUT_S = 300.0
"""Seconds within which all tasks must have started."""
GRACE_S = 5.0
"""Seconds in which a rank may end by itself after another task has ended."""
OWN_ID = "srun-"
"""The beginning of the value of TORCHELASTIC_RUN_ID in these tasks."""
NODE_ADDRESS = re.compile(r"\bNodeAddr=(\S+)")


def is_task() -> bool:
    """Return whether srun started this process as one of several tasks.

    A batch script or a shell of ``srun --pty`` is not such a task: it may start a run itself. Nor is an agent of a W&B
    sweep: each agent runs its own trials.
    """
    environ = os.environ
    several = int(environ.get("SLURM_STEP_NUM_TASKS") or "1") > 1
    by_torchrun = not environ.get("TORCHELASTIC_RUN_ID", OWN_ID).startswith(OWN_ID)
    return (several and {"SLURM_STEP_ID", "SLURM_PROCID"} <= environ.keys() and not by_torchrun
            and "WANDB_SWEEP_ID" not in environ)  # fmt: skip


def note_unused_nodes() -> None:
    """Print a note if a run on this machine leaves nodes of a job unused: in the shell of ``salloc`` on a login
    machine, or in a batch script on several nodes."""
    environ, here = os.environ, platform.node()
    nodes = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST", "")
    names = [name.split(".")[0] for name in expand(nodes)]
    inside = "SLURMD_NODENAME" in environ or here.split(".")[0] in names
    started = "TORCHELASTIC_RUN_ID" in environ  # torchrun or srun has started ranks, perhaps on all nodes
    if names and not started and not (inside and len(names) == 1):
        one = "" if inside else ", or to use all GPUs of one node: srun --nodes=1 --ntasks=1 ftdist …"
        print(f"note: job {environ.get('SLURM_JOB_ID')} has {nodes}, but the run uses {here} only. To use all nodes, "
              f"with one rank for each task: srun --ntasks-per-node=RANKS ftdist …{one}", file=sys.stderr)  # fmt: skip


def tasks_per_node(text: str) -> int:
    """Return the number of tasks on each node, from SLURM_STEP_TASKS_PER_NODE: ``2(x4)``.

    Raises:
        ConfigError: the nodes have different numbers.
    """
    numbers = {int(number) for number in re.findall(r"(?:^|,)(\d+)", text)}
    if len(numbers) != 1:
        raise ConfigError(f"srun started different numbers of tasks on nodes: {text}", "the same number on each node",
                          "start the tasks with srun --ntasks-per-node=N")  # fmt: skip
    return numbers.pop()


def has_own_gpu() -> bool:
    """Return whether this task sees only the GPU of its rank, as with ``srun --gpus-per-task=1``."""
    environ = os.environ
    return is_task() and "CUDA_VISIBLE_DEVICES" in environ and len(visible_gpus()) == 1


def set_threads(launch: LaunchConfig) -> None:
    """Fill in threads_per_rank, if srun has given this task CPUs of its own."""
    if is_task() and launch.threads_per_rank is None and (given := os.environ.get("SLURM_CPUS_PER_TASK")):
        launch.threads_per_rank = min(cpu_cores(), int(given))


@contextlib.contextmanager
def together(suffix: Optional[str] = None) -> Iterator[None]:
    """Connect the tasks inside the ``with`` block, and set torchrun's variables for this one.

    Args:
        suffix: ``launch.slurm.address_suffix``.

    Raises:
        LaunchError: a task has not started, or does not reach the first one. The message names the task.
    """
    environ = os.environ
    rank, per_node = environ["SLURM_PROCID"], tasks_per_node(environ["SLURM_STEP_TASKS_PER_NODE"])
    job, step, world = int(environ["SLURM_JOB_ID"]), int(environ["SLURM_STEP_ID"]), environ["SLURM_STEP_NUM_TASKS"]
    port = 15000 + (job * 16 + step) % 15000
    node, nodes = environ.get("SLURMD_NODENAME", platform.node()), expand(environ["SLURM_STEP_NODELIST"])
    kept: List[socket.socket] = []
    if rank == "0":
        others = {f"task-{number}" for number in range(1, int(world))}
        met = meeting.receive(port, others, node, JOIN_TIMEOUT_S, kept)
    else:
        met = meeting.join(_names(nodes[0], suffix), port, f"task-{rank}", JOIN_TIMEOUT_S, kept)
    if interface := meeting.gloo_interface(met.own):
        environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # --signal=USR2@N: see under_torchrun for rank 0
    environ |= {
        "RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": str(per_node),
        "LOCAL_RANK": "0" if has_own_gpu() else environ["SLURM_LOCALID"],
        "MASTER_ADDR": met.first, "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": f"{OWN_ID}{job}.{step}", "TORCHELASTIC_RESTART_COUNT": "0",
    }  # fmt: skip
    threading.Thread(target=_end_with_others, args=(kept,), daemon=True).start()
    try:
        yield
    finally:
        for connection in kept:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


def _names(first: str, suffix: Optional[str]) -> List[str]:
    """Return the names and addresses of the first node."""
    said = ""
    with contextlib.suppress(LaunchError):  # there may be no Slurm in a container
        said = run_command("scontrol", "show", "node", first, check=False)
    return meeting.names_of(first, suffix, NODE_ADDRESS.findall(said))


def _end_with_others(connections: List[socket.socket]) -> None:
    """Wait until a task at the other end of a connection ends, then end the rank of this one."""
    with contextlib.suppress(OSError, ValueError):  # this task has ended, and closed them
        select.select(connections, [], [])
    time.sleep(GRACE_S)
    while True:
        for child in psutil.Process().children():
            with contextlib.suppress(psutil.Error):
                child.kill()
        time.sleep(1)
