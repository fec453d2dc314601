"""JSON-lines files that survive a crash: whole lines only, and one bad write never spoils the next."""

import json
import math
import os
from collections import deque
from pathlib import Path
from typing import Any, Callable, Deque, Dict, List, Optional

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


def parse_line(line: bytes) -> Optional[Record]:
    """The record of one line; None where a crash cut or mangled it."""
    if not line.endswith(b"\n"):
        return None
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def read_records(path: Path) -> List[Record]:
    """Every whole record of a file; none where there is no file."""
    if not path.is_file():
        return []
    lines = path.read_bytes().splitlines(keepends=True)
    return [record for line in lines if (record := parse_line(line)) is not None]


def keep_records(path: Path, wanted: Callable[[Record], bool]) -> None:
    """Rewrite a file with the wanted records only, in one step. Lines that stay, stay byte for byte."""
    if not path.is_file():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if (record := parse_line(line)) is not None and wanted(record)]
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        file.writelines(kept)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


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
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    content = path.read_bytes()
    if content and not content.endswith(b"\n"):
        os.ftruncate(fd, content.rfind(b"\n") + 1)
    return fd
