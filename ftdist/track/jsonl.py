"""The record of a run, metrics.jsonl and samples.jsonl: JSON-lines files that survive a crash and a full disk."""

import json
import math
import os
import time
from collections import deque
from pathlib import Path
from typing import Any, Callable, Deque, Dict, List, Mapping, Optional

from ftdist.base.json_files import parse_line
from ftdist.run.rundir import RunDir

Record = Dict[str, Any]
MAX_WAITING = 10_000
"""Maximum number of records kept in memory while they cannot be written. The oldest are dropped first."""


class RunRecord:
    """The record of a run, and its first sink: metrics.jsonl and samples.jsonl in the run directory.

    A record that cannot be written, for example because the disk is full, does not stop the run. The user is told once.
    The record is kept in memory, and written together with the next one.
    """

    def __init__(self, run: RunDir, note: Callable[[str], None]) -> None:
        """
        Args:
            run: The run directory that holds the two files.
            note: Prints one line for the user.
        """
        self._note = note
        self._metrics = JsonLines(run.metrics)
        self._samples = JsonLines(run.samples)
        self._failure_noted = False

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl. Values that are not finite become the texts "nan", "inf" and "-inf"."""
        self._append(self._metrics, {"step": step, "time": time.time(), **metrics})

    def samples(self, step: int, rows: List[Record]) -> None:
        """Append one line for each row to samples.jsonl."""
        for row in rows:
            self._append(self._samples, {"step": step, "time": time.time(), **row})

    def report(self, files: Mapping[str, str], numbers: Mapping[str, float]) -> None:
        """Do nothing: the report is in the run directory already."""

    def rewind(self, step: int, evaluated: bool) -> None:
        """Remove the records after ``step``, also those that could not be written yet."""
        for file in (self._metrics, self._samples):
            file.cut(_is_kept(step, evaluated))

    def finish(self, exit_code: int) -> None:
        """Close the files, and tell the user how many records are lost."""
        for file in (self._metrics, self._samples):
            file.close()
        if lost := self._metrics.lost + self._samples.lost:
            self._note(f"{lost} records could not be written to the run directory")

    def _append(self, file: "JsonLines", record: Record) -> None:
        if not file.append(record) and not self._failure_noted:
            self._failure_noted = True
            self._note(
                f"a record could not be written ({file.error}); ftdist will write it again together with the next "
                "record"
            )


def rewind_record(run: RunDir, step: int, evaluated: bool = True) -> None:
    """Remove the records after ``step`` from the files of a run, before it resumes there and repeats the later steps.

    Args:
        run: The run directory.
        step: Optimizer steps that are done.
        evaluated: Whether the evaluation at ``step`` is kept. It is false if the run will evaluate at ``step`` again:
            an earlier attempt evaluated there, but saved no checkpoint afterwards.
    """
    for path in (run.metrics, run.samples):
        cut_records(path, _is_kept(step, evaluated))


def record_gap(run: RunDir, step: int, log_every: int) -> str:
    """Return one line about the steps that are missing from metrics.jsonl of a run that resumes after ``step``.

    Returns an empty text if no missing step is found.
    """
    steps = [record["step"] for record in run.read_metrics() if "train/loss" in record and "step" in record]
    newest = max(steps, default=0)
    if newest >= step - step % log_every:
        return ""
    lost = f"steps {newest + 1} to {step}" if step > newest + 1 else f"step {step}"
    name = run.metrics.name
    return f"{name} ends at step {newest}, but the checkpoint is from step {step}. The records of {lost} are lost"


def _is_kept(step: int, evaluated: bool) -> Callable[[Record], bool]:
    """Return a function that tells whether a run that goes back to ``step`` keeps a record."""

    def kept(record: Record) -> bool:
        at = record.get("step", 0)
        return bool(at < step or (at == step and (evaluated or "train/loss" in record)))

    return kept


def to_json(value: Any) -> Any:
    """Convert a value to one that JSON can hold.

    JSON has no NaN and no infinity. They become the texts "nan", "inf" and "-inf", which ``float()`` reads back.
    """
    if value is None or isinstance(value, (str, int)):
        return value
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    number = float(value)  # accepts NumPy scalars and tensors with one element, too
    return number if math.isfinite(number) else str(number)


def cut_records(path: Path, kept: Callable[[Record], bool]) -> None:
    """Truncate a file before its first record that is not kept, or before an incomplete last line.

    The file is truncated in place, which works on a full disk, too.
    """
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
    """Append records to a file. Each one is handed to the operating system before ``append`` returns.

    A failed write, for example on a full disk, raises no error. The file is truncated after its last complete line. The
    write is repeated with the next record, and for the last time when the file is closed.

    Attributes:
        lost: Number of records that could not be written.
        error: The newest failure of a write, or None.
    """

    def __init__(self, path: Path) -> None:
        self.lost = 0
        self.error: Optional[OSError] = None
        self._path = path
        self._fd: Optional[int] = None
        self._waiting: Deque[bytes] = deque()

    def append(self, record: Record) -> bool:
        """Write one line. Returns False if the record could not be written yet."""
        line = json.dumps(to_json(record), ensure_ascii=False, allow_nan=False).encode("utf-8", "replace") + b"\n"
        if len(self._waiting) == MAX_WAITING:
            self._waiting.popleft()
            self.lost += 1
        self._waiting.append(line)
        return self._write_waiting()

    def cut(self, kept: Callable[[Record], bool]) -> None:
        """Remove the records from the first one that is not kept (see ``cut_records``), and those still in memory."""
        self._waiting = deque(line for line in self._waiting if kept(json.loads(line)))
        cut_records(self._path, kept)

    def close(self) -> None:
        """Try to write the waiting records for the last time, and close the file."""
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
                    self._fd = _open_after_last_line(self._path)
                line, end = self._waiting[0], os.lseek(self._fd, 0, os.SEEK_END)
                if os.write(self._fd, line) != len(line):
                    os.ftruncate(self._fd, end)
                    raise OSError(f"{self._path.name}: only a part of a line could be written")
                self._waiting.popleft()
        except OSError as error:
            self.error = error
            return False
        return True


def _open_after_last_line(path: Path) -> int:
    """Open a file for appending, and remove an incomplete last line that a crash left."""
    mode = 0o666  # the umask applies to it
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    content = path.read_bytes()
    if content and not content.endswith(b"\n"):
        os.ftruncate(fd, content.rfind(b"\n") + 1)
    return fd
