"""A second user account: run something as another user than the owner of the test's files."""

import os
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any, Callable, List

import pytest

from tests.helpers.ranks import fork

NOBODY = 65534
"""Number of a user that owns nothing."""
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to run a process as another user")


def open_to_all(folder: Path) -> Path:
    """Let every user enter a folder and those that lead to it. pytest makes its folders for one user only."""
    for place in (folder, *folder.parents):
        if not place.stat().st_mode & 0o001:
            place.chmod(place.stat().st_mode | 0o011)
    return folder


MAKE_VISIBLE = """
set -e
stage=$1 hidden=$2 shown=$3
shift 3
number=0
for folder in $shown; do mkdir -p "$stage/$((number += 1))"; mount --bind "$folder" "$stage/$number"; done
for folder in $hidden; do mount -t tmpfs -o mode=755 none "$folder"; done
number=0
for folder in $shown; do mkdir -p "$folder"; mount --bind "$stage/$((number += 1))" "$folder"; done
exec "$@"
"""
"""In a mount namespace of its own: put an empty folder over each hidden folder, and into it what must be visible."""


def other_user(scratch: Path) -> List[str]:
    """Return the beginning of a command that runs the rest as another user, with this Python and this code.

    Python or the code may lie in a folder that only root can enter, such as ``/root``. The command then gets a view of
    the file system in which only what is needed of that folder is visible.

    Args:
        scratch: A new folder, for mount points and the home of the user.
    """
    (home := scratch / "home").mkdir(parents=True)
    os.chown(home, NOBODY, NOBODY)
    words = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "env", f"HOME={home}"]
    shown = [Path(sys.base_prefix).resolve(), Path(sys.prefix).resolve(), Path(__file__).resolve().parents[2]]
    closed = [[place for place in folder.parents if not place.stat().st_mode & 0o001] for folder in shown]
    hidden = {places[-1] for places in closed if places}
    if not hidden:
        return words
    inside = [folder for folder, places in zip(shown, closed, strict=True) if places]
    lists = [" ".join(map(str, places)) for places in (sorted(hidden), inside)]
    words = ["unshare", "--mount", "sh", "-c", MAKE_VISIBLE, "sh", str(scratch / "mounts"), *lists, *words]
    if subprocess.run([*words, sys.executable, "-c", ""], capture_output=True).returncode:
        pytest.skip(f"only root may enter {', '.join(map(str, hidden))}, and mounts are not allowed here")
    return words


def as_other_user(act: Callable[[], Any]) -> str:
    """Call a function in a child process that has no rights of root. Returns what it returned or raised, as text."""
    reader, writer = os.pipe()
    pid = fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            try:
                said = str(act())
            except Exception as error:
                said = f"{type(error).__name__}: {error}"
            os.write(writer, said.encode())
        except BaseException:
            os.write(writer, traceback.format_exc().encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        said = file.read().decode()
    os.waitpid(pid, 0)
    return said
