"""Read and write small JSON files, and read the records of JSON-lines files."""

import contextlib
import json
import os
from pathlib import Path
from typing import Any, Dict, List, Optional

from ftdist.base.temporary import temporary_path


def read_json(path: Path) -> Dict[str, Any]:
    """Return the object that a JSON file holds.

    Raises:
        OSError: The file cannot be read.
        ValueError: The file is not JSON, or its value is not an object.
    """
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError(f"{type(found).__name__} instead of an object")
    return found


def write_json(path: Path, value: Any, durable: bool = True) -> None:
    """Write a JSON file under a temporary name and rename it, so that a reader never sees a partly written file.

    Args:
        path: The file to replace or create.
        value: What to write. Values that JSON cannot hold are written as text.
        durable: Flush the file to the disk before it is renamed, so that it survives a power failure.
    """
    temporary = temporary_path(path)
    try:
        with temporary.open("x", encoding="utf-8") as file:
            file.write(json.dumps(value, indent=2, default=str) + "\n")
            file.flush()
            if durable:
                os.fsync(file.fileno())
        temporary.replace(path)
    except FileExistsError:  # another process created this file, so do not remove it
        raise
    except OSError:  # for example a full disk
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def parse_line(line: bytes) -> Optional[Dict[str, Any]]:
    """Return the record of one line of a JSON-lines file, or None if a crash cut or damaged the line.

    A record is an object. If it has a ``step``, the step must be an integer.
    """
    if not line.endswith(b"\n"):
        return None
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get("step", 0), int) else None


def read_records(path: Path) -> List[Dict[str, Any]]:
    """Return every complete record of a JSON-lines file. Returns an empty list if the file does not exist."""
    if not path.is_file():
        return []
    lines = path.read_bytes().splitlines(keepends=True)
    return [record for line in lines if (record := parse_line(line)) is not None]
