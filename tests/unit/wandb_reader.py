"""Reader of W&B's offline run file: LevelDB log blocks of 32 KiB, in which each record is a protobuf message."""

import json
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional

BLOCK = 32768
MAGIC_BYTES = 7
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


@dataclass
class OfflineRun:
    """What a run file holds."""

    run_id: str = ""
    run: Any = None
    config: Dict[str, Any] = field(default_factory=dict)
    history: List[Dict[str, Any]] = field(default_factory=list)
    summary: Dict[str, Any] = field(default_factory=dict)
    artifacts: List[Any] = field(default_factory=list)
    metrics: List[Any] = field(default_factory=list)
    num_stats: int = 0
    exit_code: Optional[int] = None
    folder: Path = Path()

    def rows(self, key: str) -> List[Any]:
        """Return the values of a metric in logged order."""
        return [row[key] for row in self.history if key in row]


def raw_records(content: bytes) -> Iterator[bytes]:
    """Yield the complete records of a run file. Stop at the first record that a crash cut."""
    position, parts = MAGIC_BYTES, b""
    while position + 7 <= len(content):
        left = BLOCK - position % BLOCK
        if left < 7:  # too short for a header, so that it is filled with zeros
            position += left
            continue
        _crc, length, kind = struct.unpack_from("<IHB", content, position)
        data = content[position + 7 : position + 7 + length]
        if len(data) < length or kind not in (FULL, FIRST, MIDDLE, LAST):
            return
        position += 7 + length
        parts = data if kind in (FULL, FIRST) else parts + data
        if kind in (FULL, LAST):
            yield parts


def read_run(folder: Path) -> OfflineRun:
    """Read the only run file of an ``offline-run-…`` or ``run-…`` folder."""
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = folder.glob("run-*.wandb")
    content = path.read_bytes()
    found = OfflineRun(folder=folder)
    for raw in raw_records(content):
        record = Record.FromString(raw)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found.run, found.run_id = record.run, record.run.run_id
            _update(found.config, record.run.config)
        elif kind == "config":
            _update(found.config, record.config)
        elif kind == "history":
            items = record.history.item
            found.history.append({i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items})
        elif kind == "summary":
            _update(found.summary, record.summary)
        elif kind == "artifact":
            found.artifacts.append(record.artifact)
        elif kind == "metric":
            found.metrics.append(record.metric)
        elif kind == "stats":
            found.num_stats += 1
        elif kind == "exit":
            found.exit_code = record.exit.exit_code
    return found


def _update(config: Dict[str, Any], record: Any) -> None:
    for item in record.update:
        config[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)


def read_runs(wandb_folder: Path) -> List[OfflineRun]:
    """Read every run file under RUN_DIR/wandb, oldest first."""
    return [read_run(path.parent) for path in sorted(wandb_folder.glob("*run-*/run-*.wandb"))]
