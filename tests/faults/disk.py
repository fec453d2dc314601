"""A simulated disk: it counts file operations, fails or stops at one of them, and loses data that was not fsynced."""

# ruff: noqa: PTH102, PTH104
import errno
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Container, Dict, List, Optional, Set


class Crash(BaseException):
    """The machine has stopped. No code catches this exception, and nothing is written after it."""


class Disk:
    """Replaces ``os`` in ftdist.checkpoint.durable, on top of the real file system.

    Args:
        root: the folder that is written to.
        scratch: an empty folder elsewhere on the same file system.
        stop_at: the operation, counted from 0, at which the machine stops; −1 for none.
        failing: operations that fail with ``error``.
        stop: called at ``stop_at``.
    """

    def __init__(
        self, root: Path, scratch: Path, stop_at: int = -1, failing: Container[int] = (), error: int = errno.ENOSPC,
        stop: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        self.operations: List[str] = []
        self._root, self._scratch, self._stop_at, self._stop = root, scratch, stop_at, stop
        self._failing, self._error = failing, error
        self._stopped = False
        self.goes_on = False
        """The machine continues after ``stop``."""
        self._open: Dict[int, Path] = {}
        self._unsynced_files: Set[int] = set()  # inodes
        self._unsynced_entries: List[Entry] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def _count(self, operation: str, path: Path) -> None:
        index = len(self.operations)
        if index == self._stop_at or (self._stopped and not self.goes_on):
            self._stopped = True
            self._stop()
            if not self.goes_on:
                raise Crash
        self.operations.append(f"{operation} {path.name}")
        if index in self._failing:
            raise OSError(self._error, os.strerror(self._error), str(path))

    def open(self, path: Path, flags: int, mode: int = 0o777) -> int:
        self._count("open", path)
        descriptor = os.open(path, flags, mode)
        self._open[descriptor] = path
        if flags & os.O_CREAT:
            self._unsynced_files.add(os.fstat(descriptor).st_ino)
            self._unsynced_entries.append(Entry(path, None))
        return descriptor

    def made(self, path: Path) -> None:
        """Register a new file that was written without this object: it is not on the disk yet."""
        self._unsynced_files.add(path.stat().st_ino)
        self._unsynced_entries.append(Entry(path, None))

    def close(self, descriptor: int) -> None:
        del self._open[descriptor]
        os.close(descriptor)

    def write(self, descriptor: int, data: Any) -> int:
        self._count("write", self._open[descriptor])
        return os.write(descriptor, data[: max(1, len(data) * 2 // 3)])  # never all at once

    def fsync(self, descriptor: int) -> None:
        path = self._open[descriptor]
        self._count("fsync", path)
        if path.is_dir():
            self._unsynced_entries = [entry for entry in self._unsynced_entries if entry.path.parent != path]
        else:
            self._unsynced_files.discard(os.fstat(descriptor).st_ino)

    def mkdir(self, path: Path) -> None:
        self._count("mkdir", path)
        os.mkdir(path)
        self._unsynced_entries.append(Entry(path, None))

    def rename(self, source: Path, target: Path) -> None:
        self._count("rename", target)
        os.rename(source, target)
        self._follow(source, target)
        self._unsynced_entries.append(Entry(target, source))

    def unlink(self, path: Path) -> None:
        self._remove("unlink", path)

    def rmdir(self, path: Path) -> None:
        self._remove("rmdir", path)

    def _remove(self, operation: str, path: Path) -> None:
        self._count(operation, path)
        place = self._scratch / str(len(self.operations))
        os.rename(path, place)
        self._follow(path, place)
        self._unsynced_entries.append(Entry(path, place, removed=True))

    def _follow(self, source: Path, target: Path) -> None:
        for entry in self._unsynced_entries:
            if source in entry.path.parents:
                entry.path = target / entry.path.relative_to(source)

    def lose_power(self) -> None:
        """Undo what was not fsynced: truncate such files to half, and revert changes of folder entries."""
        for path in self._root.rglob("*"):
            if path.is_file() and path.stat().st_ino in self._unsynced_files:
                os.truncate(path, path.stat().st_size // 2)
        while self._unsynced_entries:
            entry = self._unsynced_entries.pop()
            if entry.other is None:
                shutil.rmtree(entry.path) if entry.path.is_dir() else entry.path.unlink()
                continue
            now, before = (entry.other, entry.path) if entry.removed else (entry.path, entry.other)
            os.rename(now, before)
            self._follow(now, before)


@dataclass
class Entry:
    """A change of a folder entry that is not on the disk yet."""

    path: Path
    other: Optional[Path]
    """The old path of a renamed entry, or the place where a ``removed`` entry is kept. None: the entry is new."""
    removed: bool = False
