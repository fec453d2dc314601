"""Files that outlive a crash. Every file operation of a checkpoint is made here, so that the tests can stop at each."""

import contextlib
import errno
import hashlib
import os
import stat
from pathlib import Path
from typing import Any, Dict, Iterable

CHUNK = 1 << 23


def write_file(path: Path, parts: Iterable[Any]) -> Dict[str, Any]:
    """Write a file that is not there yet, hash it meanwhile, and have it on the disk before returning.

    Args:
        parts: what can be seen as bytes, in order.

    Returns:
        ``{"size", "sha256"}`` of what was written.

    Raises:
        OSError: with the file's name, whichever operation failed.
    """
    digest, size = hashlib.sha256(), 0
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)  # a planted link is not followed
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
    """Have a file's content on the disk, or a folder's entries: without them a file can still lose its name."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that cannot
            raise
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    os.mkdir(path)  # noqa: PTH102 - counted by the tests, as all here


def rename(source: Path, target: Path) -> None:
    os.rename(source, target)  # noqa: PTH104


def remove(path: Path) -> None:
    """Delete a folder and all in it, or a file; what is not there is fine. A link is unlinked, never entered: whoever
    planted it would have files elsewhere deleted."""
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISDIR(os.lstat(path).st_mode):
            for name in sorted(os.listdir(path)):  # noqa: PTH208
                remove(path / name)
            os.rmdir(path)  # noqa: PTH106
        else:
            os.unlink(path)  # noqa: PTH108


def sha256_of(path: Path) -> str:
    digest, block = hashlib.sha256(), bytearray(CHUNK)
    view = memoryview(block)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(block):
            digest.update(view[:count])
    return digest.hexdigest()
