"""Common code of the backends whose launcher runs on this machine and waits until the run ends."""

import contextlib
import os
import platform
import shlex
import signal
import time
from pathlib import Path
from typing import Dict, List, Optional, Sequence

import psutil

from ftdist.base.counts import count
from ftdist.base.errors import ConfigError
from ftdist.base.output import quoted_path
from ftdist.base.permissions import AccessError, user_name
from ftdist.base.process import find_process, is_alive
from ftdist.base.shell import shell_words
from ftdist.config.launch import Device, LaunchConfig
from ftdist.config.schema import RunConfig
from ftdist.launch.attempt import lifecycle
from ftdist.launch.attempt.machine import check_torch, cpu_cores, visible_gpus
from ftdist.launch.backends.base import ALIVE, DEAD, Seen, Status, newest_rank_log
from ftdist.run.rundir import RunDir

SILENT_S = 900.0
"""Seconds without a new status, after which a run on another host counts as dead."""
BETWEEN_INTERRUPTS_S = 0.3
END_S = 30.0
"""Seconds that a launcher has to end its run."""


class ForegroundBackend:
    """The part of a backend that does not depend on how its launcher starts the ranks."""

    on_this_machine = False
    uses_scheduler = False

    def check_start(self, config: RunConfig) -> None:
        check_torch(config.launch)

    def files(self, config: RunConfig) -> Dict[str, str]:
        return {}

    def states(self, statuses: Sequence[Status]) -> List[Seen]:
        return [Seen(_state(status)) for status in statuses]

    def stop(self, run: RunDir, now: bool = False) -> str:
        if not now:
            return lifecycle.ask_to_stop(run)
        launcher = _launcher(run)
        run.cancel.touch()
        _end(launcher)
        return "the run was stopped without saving a checkpoint"

    def log(self, run: RunDir) -> Optional[Path]:
        return newest_rank_log(run, 0)


def resolve_device(launch: LaunchConfig) -> int:
    """Fill in the device by what this machine has. Returns the number of its GPUs.

    Raises:
        ConfigError: GPUs are asked for, and there are none.
    """
    gpus = len(visible_gpus())
    if launch.device is Device.auto:
        launch.device = Device.cuda if gpus else Device.cpu
    if launch.device is Device.cuda and not gpus:
        raise ConfigError(
            "launch.device=cuda, but this machine has no GPU that CUDA may use",
            "a GPU that `nvidia-smi -L` lists and CUDA_VISIBLE_DEVICES does not hide",
            "launch.device=cpu launch.nproc_per_node=2 (and a model that fits: experiment=demo)",
        )
    return gpus


def resolve_ranks_per_node(launch: LaunchConfig, gpus: int) -> None:
    """Fill in the ranks of each machine and the threads of each rank. All machines are assumed to be like this one.

    Raises:
        ConfigError: there are fewer GPUs than ranks.
    """
    if launch.nproc_per_node is None:
        launch.nproc_per_node = gpus if launch.device is Device.cuda else 1
    if launch.device is Device.cuda and launch.nproc_per_node > gpus:
        raise ConfigError(
            f"launch.nproc_per_node={launch.nproc_per_node}, but this machine has "
            f"{count(gpus, 'visible GPU')}",
            "at most one rank per GPU", f"launch.nproc_per_node={gpus}",
        )  # fmt: skip
    if launch.threads_per_rank is None:
        launch.threads_per_rank = max(1, cpu_cores() // launch.nproc_per_node)


def _state(status: Status) -> str:
    state = str(status.get("state", "?"))
    if state not in ALIVE:
        return state
    if status.get("host") == platform.node() and status.get("pid"):
        return state if is_alive(int(status["pid"]), started_by=float(status["time"])) else DEAD
    return DEAD if time.time() - float(status.get("time", 0)) > SILENT_S else state


def _launcher(run: RunDir) -> Optional[psutil.Process]:
    """Return the launcher of a run, or None if it has ended meanwhile.

    Raises:
        ConfigError: it runs on another machine.
        AccessError: it belongs to another user.
    """
    status = run.read_status()
    if status.get("host") != platform.node():
        command = shlex.join(["ftdist", "cancel", "--now", str(run.path.absolute())])  # ssh starts a shell elsewhere
        raise ConfigError(f"{run.path} runs on {status.get('host')}", "the machine on which it was started",
                          shell_words(["ssh", str(status.get("host")), command]))  # fmt: skip
    launcher = find_process(int(status["pid"]))
    if launcher is not None and os.geteuid() not in (0, owner := launcher.uids().effective):
        raise AccessError(f"{run.path} was started by {user_name(owner)}, whose processes you may not end",
                          "the user who started it, or root",
                          f"ftdist cancel {quoted_path(run.path)}, which only needs to write into the run directory",
                          )  # fmt: skip
    return launcher


def _end(launcher: Optional[psutil.Process]) -> None:
    """End the launcher of a run, as pressing Ctrl-C twice would."""
    if launcher is None:
        return
    with contextlib.suppress(psutil.NoSuchProcess, psutil.TimeoutExpired):
        for _ in range(2):
            launcher.send_signal(signal.SIGINT)
            time.sleep(BETWEEN_INTERRUPTS_S)
        launcher.wait(timeout=END_S)
