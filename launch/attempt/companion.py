"""A launcher that is killed takes with it what runs elsewhere: a process that outlives it asks the run to stop.

It waits for the end of its standard input, which comes at once however the launcher went.
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

ALL_IS_WELL = b"."


GRACE_S = 8.0
"""How long processes of a group may take to end by themselves."""
TWICE_S = 0.3


@contextlib.contextmanager
def guarding(place: Path, group: Optional[int] = None) -> Iterator[None]:
    """While this lasts, the end of this process stops the run or sweep at ``place``, and then a group of processes."""
    more = [] if group is None else ["--group", str(group)]
    child = subprocess.Popen([sys.executable, "-m", "ftdist", "_guard", str(place), *more], stdin=subprocess.PIPE,
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)  # fmt: skip
    try:
        yield
    finally:
        child.communicate(ALL_IS_WELL)


def members(group: int) -> List[psutil.Process]:
    """The processes of a group, those first that were started first."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(OSError, psutil.Error):
            if os.getpgid(process.pid) == group and is_alive(process.pid):
                found.append(process)
    return sorted(found, key=lambda process: process.create_time())


def end_group(group: int) -> None:
    """End a group of processes and what they have started elsewhere. srun passes a second SIGINT on as an end at
    once. The leader, DeepSpeed's launcher, is killed: on SIGINT it would end all of its kind on every host."""
    for how in (signal.SIGINT, signal.SIGINT, signal.SIGKILL):
        left = members(group)
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.send_signal(signal.SIGKILL if process.pid == group else how)
        psutil.wait_procs(left, timeout=TWICE_S if how is signal.SIGINT else GRACE_S)
