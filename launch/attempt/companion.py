"""A companion process that outlives a launcher, and stops its run if the launcher is killed.

The companion waits for the end of its standard input, a pipe that only the launcher holds. The pipe closes as soon as
the launcher ends, even if it was killed. ``ftdist _guard`` (``launch/verbs/guard.py``) is the companion's program.
"""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import List, Optional

import psutil

from ftdist.base.process import is_alive

END_OF_LAUNCHER = b"."
"""What a launcher sends when it ends normally. The companion then does nothing."""
GRACE_S = 8.0
"""Seconds that the processes of a group have to end by themselves."""
BETWEEN_INTERRUPTS_S = 0.3


@contextlib.contextmanager
def stop_run_if_killed(place: Path, group: Optional[int] = None) -> Iterator[None]:
    """Stop a run or a sweep if this process is killed inside the ``with`` block.

    Args:
        place: the folder of the run or sweep.
        group: a process group to end afterwards.
    """
    options = [] if group is None else ["--group", str(group)]
    child = subprocess.Popen([sys.executable, "-m", "ftdist", "_guard", str(place), *options], stdin=subprocess.PIPE,
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)  # fmt: skip
    try:
        yield
    finally:
        child.communicate(END_OF_LAUNCHER)


def group_members(group: int) -> List[psutil.Process]:
    """Return the living processes of a process group, the oldest first."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(OSError, psutil.Error):
            if os.getpgid(process.pid) == group and is_alive(process.pid):
                found.append((process.create_time(), process.pid, process))
    return [process for _, _, process in sorted(found, key=lambda entry: entry[:2])]


def end_group(group: int) -> None:
    """End the processes of a group and what they have started on other machines.

    srun treats a second SIGINT as the command to end immediately. The group's leader, DeepSpeed's launcher, gets
    SIGKILL: on SIGINT it would end all processes of its kind on every host.
    """
    for how in (signal.SIGINT, signal.SIGINT, signal.SIGKILL):
        left = group_members(group)
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.send_signal(signal.SIGKILL if process.pid == group else how)
        psutil.wait_procs(left, timeout=BETWEEN_INTERRUPTS_S if how is signal.SIGINT else GRACE_S)
