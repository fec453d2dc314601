"""JSON-lines files that survive a crash: whole lines only, and one bad write never spoils the next."""

import json
import math
import os
from collections import deque
from pathlib import Path
from typing import Any, Callable, Deque, Dict, Optional

from ftdist.base.json_files import parse_line

Record = Dict[str, Any]
MOST_WAITING = 10_000
"""Records kept in memory while a disk is full."""


def to_json(value: Any) -> Any:
    """A value that JSON can hold. JSON has no NaN and no infinity: they become "nan", "inf", "-inf", which ``float()``
    reads back."""
    if value is None or isinstance(value, (str, int)):
        return value
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    number = float(value)  # also of NumPy's scalars and of tensors with one element
    return number if math.isfinite(number) else str(number)


def cut_records(path: Path, kept: Callable[[Record], bool]) -> None:
    """Cut a file off before its first record that is not kept, and a last line without its end. It is cut where it
    lies, which a full disk does not prevent."""
    if path.is_symlink() or not path.is_file():
        return
    with path.open("r+b") as file:
        end = 0
        for line in file:
            record = parse_line(line)
            if not line.endswith(b"\n") or (record is not None and not kept(record)):
                break
            end += len(line)
        file.truncate(end)
        os.fsync(file.fileno())


class JsonLines:
    """Appends records to a file, each handed to the operating system before ``append`` returns.

    A write that fails (a full disk) does not raise: the file is cut back to its last whole line, and what could not be
    written is tried again with the next record and at the end. ``lost`` counts what had to be given up.
    """

    def __init__(self, path: Path) -> None:
        self.lost = 0
        self.error: Optional[OSError] = None
        self._path = path
        self._fd: Optional[int] = None
        self._waiting: Deque[bytes] = deque()

    def append(self, record: Record) -> bool:
        """Write one line; False where it has to wait."""
        line = json.dumps(to_json(record), ensure_ascii=False, allow_nan=False).encode("utf-8", "replace") + b"\n"
        if len(self._waiting) == MOST_WAITING:
            self._waiting.popleft()
            self.lost += 1
        self._waiting.append(line)
        return self._write_waiting()

    def cut(self, kept: Callable[[Record], bool]) -> None:
        """Forget the records that are not kept (``cut_records``), also those that wait."""
        self._waiting = deque(line for line in self._waiting if kept(json.loads(line)))
        cut_records(self._path, kept)

    def close(self) -> None:
        if not self._write_waiting():
            self.lost += len(self._waiting)
            self._waiting.clear()
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _write_waiting(self) -> bool:
        try:
            while self._waiting:
                if self._fd is None:
                    self._fd = _open_at_whole_line(self._path)
                line, end = self._waiting[0], os.lseek(self._fd, 0, os.SEEK_END)
                if os.write(self._fd, line) != len(line):
                    os.ftruncate(self._fd, end)
                    raise OSError(f"{self._path.name}: the disk took only a part of a line")
                self._waiting.popleft()
        except OSError as error:
            self.error = error
            return False
        return True


def _open_at_whole_line(path: Path) -> int:
    """Open for appending, after cutting off a last line that a crash left without its end."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)  # less the umask
    content = path.read_bytes()
    if content and not content.endswith(b"\n"):
        os.ftruncate(fd, content.rfind(b"\n") + 1)
    return fd
