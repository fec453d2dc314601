"""A second user account: run something as another user than the owner of the test's files."""

import os
import traceback
from pathlib import Path
from typing import Any, Callable

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
