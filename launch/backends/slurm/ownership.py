"""Ensure that only one launcher or job at a time owns a run, on any machine and with any backend.

A process that is about to change a run directory or to start ranks takes the run first. ``RUN_DIR/owner.N.json`` names
the process or job that took it the N-th time. A process takes a run by creating the file with the next number. Only one
process can do that. The numbers only grow, so a process that read the directory long ago cannot take a run that another
one has taken since. Every backend uses this module. It is in the package of Slurm because an owner may be a job, and
only Slurm can tell whether a job is over.

The file is made with link(2): a complete file is written under another name and linked to the final name. link() fails
if that name exists. The file server decides this in one step, also on NFS, where O_EXCL and flock depend on the version
and the mount options. If the server's answer to link() is lost, the request is sent again, and link() reports that the
name exists although the first request made it. The link count of the written file is then 2. On file systems without
hard links (some FUSE and object stores), O_EXCL is used instead.
"""

import contextlib
import json
import os
import platform
import re
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Dict, Optional

from ftdist.base.errors import LaunchError
from ftdist.base.json_files import read_json, write_json
from ftdist.base.output import quoted_path
from ftdist.base.process import is_alive
from ftdist.base.temporary import temporary_path
from ftdist.launch.backends.base import ALIVE
from ftdist.launch.backends.foreground import SILENT_S
from ftdist.launch.backends.slurm import client
from ftdist.run.rundir import RunDir

NAME = re.compile(r"owner\.(\d+)\.json")
SUBMITTING_S = 30.0
"""Seconds that a job waits until the command that submitted it has recorded its id."""
FRESH_S = 60.0
"""Seconds for which an owner on another machine counts as alive, even if status.json shows that no run is under way."""


@dataclass(frozen=True)
class Owner:
    """A process or a job that owns a run."""

    host: str
    pid: int
    time: float
    job: str = ""
    """Id of the Slurm job, or empty."""
    restart: int = 0
    """Number of times that Slurm had requeued the job."""
    torchrun: str = ""
    """Id of the user's own torchrun, or empty."""
    submits: bool = False
    """Whether the owner is a process that only submits a job."""
    ended: bool = False
    """Whether it has released the run."""

    def describe(self) -> str:
        """Return its name for a message."""
        return f"job {self.job}" if self.job else f"process {self.pid} on {self.host}"

    def is_same(self, other: "Owner") -> bool:
        """Return whether this is the same owner: this process, or a later start of the same job or torchrun."""
        if self.job or other.job:
            return self.job == other.job and self.restart >= other.restart
        restarted = bool(self.torchrun) and int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
        mine = (self.host, self.pid) == (other.host, other.pid) and is_alive(self.pid, started_by=other.time)
        return mine or (restarted and self.torchrun == other.torchrun)


def this_process(submits: bool = False) -> Owner:
    """Return this process as an owner."""
    torchrun = os.environ.get("TORCHELASTIC_RUN_ID", "")
    return Owner(platform.node(), os.getpid(), time.time(), torchrun=torchrun, submits=submits)


def this_job(job: str) -> Owner:
    """Return an owner that stands for the Slurm job in which this process runs.

    Args:
        job: the id of the job. For an element of an array it is ``ARRAY_INDEX``.
    """
    restart = int(os.environ.get("SLURM_RESTART_COUNT") or 0)
    return Owner(platform.node(), os.getpid(), time.time(), job=job, restart=restart)


def take(run: RunDir, owner: Owner) -> None:
    """Take a run. Does nothing if this owner already owns it.

    Raises:
        LaunchError: the run belongs to another owner. The message names that owner. Nothing has been changed.
    """
    deadline = time.monotonic() + SUBMITTING_S
    while True:
        number, path = newest(run)
        other = _read(path) if path else None
        if other is not None and not other.ended and owner.is_same(other):
            if (other.host, other.pid, other.restart) == (owner.host, owner.pid, owner.restart):
                return
        elif path is not None and (other is None or not other.ended) and _is_alive(run, path, other):
            if owner.job and other is not None and other.submits and time.monotonic() < deadline:
                time.sleep(0.2)
                continue
            raise _refused(run, other)
        break
    mine = _path(run, number + 1)
    if not _create(mine, json.dumps(asdict(owner)) + "\n"):
        raise _refused(run, _read(mine))
    last, other_path = newest(run)
    if last > number + 1 and other_path is not None:  # this process read the directory long ago
        mine.unlink(missing_ok=True)
        raise _refused(run, _read(other_path))
    for old in range(number - 1, -1, -1):  # keep one: a process with an old listing must fail to create it
        if not _path(run, old).exists():
            break
        _path(run, old).unlink(missing_ok=True)


def release(run: RunDir, owner: Owner) -> None:
    """Release a run, if this owner owns it."""
    _, path = newest(run)
    found = _read(path) if path else None
    if path is not None and found is not None and holds(found, owner):
        write_json(path, {**asdict(found), "ended": True}, durable=False)


def holds(found: Optional[Owner], owner: Owner) -> bool:
    """Return whether an owner that was found in a run directory is this one, and has not released the run."""
    if found is None or found.ended:
        return False
    if owner.job:
        return (found.job, found.restart) == (owner.job, owner.restart)
    return not found.job and (found.host, found.pid) == (owner.host, owner.pid)


def current(run: RunDir) -> Optional[Owner]:
    """Return the owner that took a run last. None if no owner has."""
    _, path = newest(run)
    return _read(path) if path else None


@contextlib.contextmanager
def owned(run: RunDir, submits: bool = False) -> Iterator[None]:
    """Own a run inside the ``with`` block. Blocks may be nested: only the outermost one releases the run.

    Args:
        submits: the block only submits a job. The job waits until the block has ended.

    Raises:
        LaunchError: the run belongs to another owner. The message names that owner.
    """
    owner = this_process(submits)
    nested = holds(current(run), owner)
    take(run, owner)
    try:
        yield
    finally:
        if not nested:
            release(run, owner)


def newest(run: RunDir) -> tuple[int, Optional[Path]]:
    """Return the highest number of an owner's file, and its path. -1 and None if there is none."""
    found: Dict[int, Path] = {}
    for path in run.path.glob("owner.*.json"):
        if match := NAME.fullmatch(path.name):
            found[int(match[1])] = path
    last = max(found, default=-1)
    return last, found.get(last)


def _path(run: RunDir, number: int) -> Path:
    return run.path / f"owner.{number}.json"


def _read(path: Path) -> Optional[Owner]:
    """Return an owner. None if its file is gone, or is not complete yet on a file system without hard links."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        return Owner(**read_json(path))
    return None


def _is_alive(run: RunDir, path: Path, owner: Optional[Owner]) -> bool:
    if owner is not None and owner.job:
        user = _user(path)
        jobs = client.jobs_of_user(user)
        if jobs is not None and (owner.job in jobs or user == os.getuid()):
            return owner.job in jobs
        # Some sites hide the jobs of other users. Then only the times of files are left.
    elif owner is not None and owner.host == platform.node():
        return is_alive(owner.pid, started_by=owner.time)
    # Whether an owner on another machine is alive can only be judged by the times of files. They are compared with the
    # clock of the file system, because the clocks of machines may differ.
    with contextlib.suppress(FileNotFoundError):
        probe = temporary_path(path)
        probe.touch()
        now = probe.stat().st_mtime
        probe.unlink()
        since = now - path.stat().st_mtime
        silent = now - max(path.stat().st_mtime, run.status.stat().st_mtime if run.status.exists() else 0.0)
        return silent < SILENT_S if run.read_status().get("state") in ALIVE else since < FRESH_S
    return False


def _user(path: Path) -> int:
    """Return the number of the user who wrote a file. The current user, if the file is gone."""
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_uid
    return os.getuid()


def _refused(run: RunDir, other: Optional[Owner]) -> LaunchError:
    who = other.describe() if other is not None else "another launcher or job"
    place = quoted_path(run.path)
    return LaunchError(f"{place} is in use by {who}; this command has changed nothing", "one launcher or job for a run",
                       f"wait until it ends (ftdist status {place}), or stop it: ftdist cancel {place}")  # fmt: skip


def _create(path: Path, text: str) -> bool:
    """Create a file with its whole text. Returns False if the file exists."""
    temporary = temporary_path(path)
    temporary.write_text(text, encoding="utf-8")
    try:
        os.link(temporary, path)
        return True
    except FileExistsError:
        return temporary.stat().st_nlink == 2  # see above: the answer to the first request was lost
    except OSError:  # no hard links here
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
            return True
        except FileExistsError:
            return False
    finally:
        temporary.unlink(missing_ok=True)
