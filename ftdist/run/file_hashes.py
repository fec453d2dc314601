"""SHA-256 hashes of files, which are kept in the cache so that a file is read only once.

The identity of an input of a run is its content: a file that was copied, or only touched, is the same. A known hash is
used again if the file has the same path, size, modification time, change time and inode. A program can set the
modification time, but not the change time, so that an edit is noticed even if it keeps size and modification time.
"""

import hashlib
import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Dict, List, Sequence

from ftdist.base.json_files import read_json, write_json
from ftdist.base.terminal import print_if_long

RECENT_NS = 2 * 10**9
"""A file that changed so recently is hashed again next time, because another change may get the same time. File systems
store times in steps of up to 2 s."""
THREADS = 8
BLOCK = 1 << 20
"""Bytes that are read at a time."""

_KNOWN: Dict[str, Dict[str, str]] = {}
"""The hashes that this process has computed, in case the cache cannot be written."""


class FileHashes:
    """The hashes of files, with those that a cache knows.

    Args:
        cache: Folder of the cache (``locations.cache_root``).
    """

    def __init__(self, cache: Path) -> None:
        self._path, self._changed = cache / "hashes.json", False
        self._known: Dict[str, Dict[str, str]] = {}
        with suppress(OSError, ValueError):  # there are no known hashes yet
            found = read_json(self._path)
            self._known = {
                name: known for name, known in found.items() if isinstance(known, dict) and "sha256" in known
            }

    def of(self, path: Path) -> str:
        """Return the hash of a file."""
        name = str(path.resolve())
        stamp = _stamp(path.stat())
        for known in (self._known.get(name), _KNOWN.get(name)):
            if known is not None and known.get("stamp") == stamp:
                return str(known["sha256"])
        started = time.time_ns()
        with path.open("rb") as file:
            before = os.fstat(file.fileno())
            digest = sha256_of(file)
            after = os.fstat(file.fileno())
        if _stamp(before) == _stamp(after) and max(after.st_mtime_ns, after.st_ctime_ns) < started - RECENT_NS:
            self._known[name] = _KNOWN[name] = {"stamp": _stamp(after), "sha256": digest}
            self._changed = True
        return digest

    def of_all(self, paths: Sequence[Path]) -> List[str]:
        """Return the hashes of several files, in their order. They are read at the same time."""
        size = sum(path.stat().st_size for path in paths)
        label = f"reading {size / 1e9:,.1f} GB once, for hashes of the content"
        with print_if_long(label, True), ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
            return list(pool.map(self.of, paths))

    def save(self) -> None:
        """Write the known hashes into the cache. Without it, files are hashed again at the next start."""
        if self._changed:
            with suppress(OSError):
                self._path.parent.mkdir(parents=True, exist_ok=True)
                write_json(self._path, self._known)


def sha256_of(file: Any) -> str:
    """Return the SHA-256 of a binary file, from its current position to its end."""
    digest = hashlib.sha256()
    while block := file.read(BLOCK):
        digest.update(block)
    return digest.hexdigest()


def _stamp(found: os.stat_result) -> str:
    return f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns} {found.st_ino}"
