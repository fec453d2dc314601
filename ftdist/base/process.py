"""Processes of this machine: whether one is alive, and what happens to it when its parent ends."""

import contextlib
import ctypes
import math
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Optional

import psutil

RANK_CPUS = "FTDIST_RANK_CPUS"
"""Environment variable with the CPUs of each rank of this machine, such as ``0,1;2,3``: commas separate CPUs, and
semicolons separate ranks. The launcher sets it, and each rank binds itself to its CPUs."""
PR_SET_PDEATHSIG = 1
WATCH_S = 1.0
"""Seconds between two checks of a process whose end this process waits for."""
CLOCK_S = 1.0
"""Tolerance in seconds for start times of processes: the kernel gives the time of its boot in whole seconds."""


def is_alive(pid: int, started_by: float = math.inf) -> bool:
    """Return whether a process is alive. A zombie is not: it has ended, and only its parent does not know it yet.

    Args:
        pid: the process id.
        started_by: Unix time at which the process already existed. A process that started later is a different one with
            the same id. When a container is restarted, ids are reused at once.
    """
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # a process of another user
        pass
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and process.create_time() <= started_by + CLOCK_S
    except psutil.ZombieProcess:
        return False
    except psutil.Error:  # /proc may hide the processes of other users
        return True


def find_process(pid: int, started_by: float = math.inf) -> Optional[psutil.Process]:
    """Return a process if it is alive. For the arguments see ``is_alive``."""
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid) if is_alive(pid, started_by) else None
    return None


def end_with(process: psutil.Process) -> None:
    """Send this process SIGTERM when another process has ended, however it ends."""
    born = process.create_time()

    def watch() -> None:
        while is_alive(process.pid, started_by=born):
            time.sleep(WATCH_S)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True, name="end_with").start()


def end_with_parent(signal_number: int) -> None:
    """Ask the kernel to send this process a signal when its parent ends, however it ends. Linux only.

    Can be called in a new child process before it executes its program (``preexec_fn`` of ``subprocess.Popen``).
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal_number))


def bind_rank(local_rank: int) -> None:
    """Bind this process and its threads to the CPUs of a rank, if ``RANK_CPUS`` is set (Linux only)."""
    shares = os.environ.get(RANK_CPUS, "").split(";")
    if local_rank < len(shares) and shares[local_rank]:
        cpus = {int(cpu) for cpu in shares[local_rank].split(",")}
        for thread in Path("/proc/self/task").iterdir():  # libraries start threads when they are imported
            with contextlib.suppress(OSError):  # it has ended, or the CPUs are no longer granted
                os.sched_setaffinity(int(thread.name), cpus)
