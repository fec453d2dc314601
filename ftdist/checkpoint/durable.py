"""File operations that survive a crash.

Every file operation of a checkpoint is in this module, so that the tests can stop the process at each of them.
"""

import contextlib
import errno
import hashlib
import os
import stat
from pathlib import Path
from typing import Any, Dict, Iterable

CHUNK = 1 << 23


def write_file(path: Path, parts: Iterable[Any]) -> Dict[str, Any]:
    """Create a file, write it, and wait until it is on the disk. The content is hashed while it is written.

    Args:
        path: The file must not exist.
        parts: The content in order, as objects that support the buffer protocol.

    Returns:
        The size in bytes and the SHA-256 hash of the file: ``{"size": …, "sha256": …}``.

    Raises:
        OSError: An operation failed. The error has the name of the file.
    """
    digest, size = hashlib.sha256(), 0
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)  # O_EXCL: do not follow a link
        try:
            for part in parts:
                view = memoryview(part).cast("B")
                size += len(view)
                while len(view):
                    written = os.write(descriptor, view[:CHUNK])
                    digest.update(view[:written])
                    view = view[written:]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise OSError(error.errno, error.strerror, path.name) from error
    return {"size": size, "sha256": digest.hexdigest()}


def sync(path: Path) -> None:
    """Wait until the content of a file, or the list of files in a folder, is on the disk.

    A new or renamed file is only safe once its folder is synced too.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # this file system does not support fsync here
            raise
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """Create a folder, which must not exist."""
    os.mkdir(path)  # noqa: PTH102 - the tests intercept the functions of os


def rename(source: Path, target: Path) -> None:
    """Rename a file or folder in one atomic operation."""
    os.rename(source, target)  # noqa: PTH104


def remove(path: Path) -> None:
    """Delete a file, or a folder with its content. Does nothing if ``path`` does not exist.

    If ``path`` is a symbolic link, only the link is deleted. Its target may belong to somebody else.
    """
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISDIR(os.lstat(path).st_mode):
            for name in sorted(os.listdir(path)):  # noqa: PTH208
                remove(path / name)
            os.rmdir(path)  # noqa: PTH106
        else:
            os.unlink(path)  # noqa: PTH108


def sha256_of(path: Path) -> str:
    """Return the SHA-256 hash of a file as hexadecimal digits."""
    digest, block = hashlib.sha256(), bytearray(CHUNK)
    view = memoryview(block)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(block):
            digest.update(view[:count])
    return digest.hexdigest()
