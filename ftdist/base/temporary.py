"""Temporary files and folders, and the removal of those that a killed process left behind."""

import contextlib
import os
import platform
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ftdist.base.process import is_alive


def temporary_path(target: Path) -> Path:
    """Return a new name for a temporary file or folder beside ``target``: ``.<name>.<host>.<pid>.<random>``.

    Create it with ``open("x")`` or ``mkdir``, which fail if the name exists. In a folder where others may write, nobody
    can then have put a link there.
    """
    return target.with_name(f".{target.name}.{platform.node()}.{os.getpid()}.{secrets.token_hex(4)}")


@contextlib.contextmanager
def replace_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a temporary file to write, flush it to the disk, and rename it to ``path``. A reader sees the old or the
    whole new file.

    Raises:
        OSError: It cannot be written. Nothing is left behind.
    """
    temporary = temporary_path(path)
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def remove_leftovers(targets: Path) -> None:
    """Remove temporary files and folders whose process ran on this machine and has ended.

    Those of other machines are kept, because it is unknown whether their processes still run.

    Args:
        targets: Path of the target or a pattern for several, such as ``RUN_DIR/export`` or ``RUN_DIR/*``.
    """
    name = re.compile(rf"\..+\.{re.escape(platform.node())}\.(\d+)\.[0-9a-f]{{8}}")
    for leftover in targets.parent.glob(f".{targets.name}.*"):
        found = name.fullmatch(leftover.name)
        if not found or is_alive(int(found.group(1))):
            continue
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                leftover.unlink()
