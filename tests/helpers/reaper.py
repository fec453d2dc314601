"""End what tests leave behind if pytest is killed, also with SIGKILL. Fixtures cannot clean up then.

A reaper is a process in a session of its own, so that what ends pytest and its process group does not end it. When its
parent is gone, it ends every process that has one of some variables in its environment or a file of one of some folders
mounted, and removes the folders. It imports the standard library only.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import List, Mapping, Set

POLL_S = 0.5
LIMIT_S = 60.0
"""Seconds for which processes are looked for. What ends may start something at the same moment."""
CLEAN_ROUNDS = 4
"""How many times in a row no process must be found."""


def start_reaper(variables: Mapping[str, str], folders: List[str]) -> "subprocess.Popen[bytes]":
    """Start a reaper for this process.

    Args:
        variables: environment variables of the processes that it ends, each with its value.
        folders: it ends processes that have a file of one of them mounted, such as slurmstepd, which overwrites its
            environment. It removes the folders afterwards.
    """
    words = [f"{name}={value}" for name, value in variables.items()]
    env = {name: value for name, value in os.environ.items() if name not in variables}  # it must not end itself
    command = [sys.executable, "-I", "-S", __file__, str(os.getpid()), str(len(words)), *words, *folders]
    return subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                            stderr=subprocess.DEVNULL, start_new_session=True)  # fmt: skip


def find_left(variables: Set[bytes], folders: List[str]) -> List[int]:
    """Return the processes with one of these variables, or with a file of one of these folders mounted only there."""
    names = [os.fsencode(f"/{Path(folder).name}/") for folder in folders]
    mine, found = Path("/proc/self/ns/mnt").readlink(), []
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # gone, a zombie, or not ours
            words = (place / "environ").read_bytes().split(b"\0")
            # All processes that share a mount namespace have the same mounts, so only those in one of their own count.
            mounts = (place / "mountinfo").read_bytes() if names and (place / "ns/mnt").readlink() != mine else b""
            if variables.intersection(words) or any(name in mounts for name in names):
                found.append(int(place.name))
    return found


def reap(parent: int, variables: Set[bytes], folders: List[str]) -> None:
    """Wait until the parent is gone, then end what it has left."""
    while os.getppid() == parent:
        time.sleep(POLL_S)
    deadline, clean = time.monotonic() + LIMIT_S, 0
    while clean < CLEAN_ROUNDS and time.monotonic() < deadline:
        left = find_left(variables, folders)
        for pid in left:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        clean = 0 if left else clean + 1
        time.sleep(POLL_S / 2)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    _number = int(sys.argv[2])
    reap(int(sys.argv[1]), set(map(os.fsencode, sys.argv[3 : 3 + _number])), sys.argv[3 + _number :])
