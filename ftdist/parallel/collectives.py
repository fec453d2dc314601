"""Reads from PyTorch's flight recorder which collectives this rank has begun, and which one it waits in."""

import json
import os
from dataclasses import dataclass
from typing import Any, Dict, Optional

BACKGROUND_GROUP = "checkpoints"
"""Description of the process group that is used in the background of training. Waiting in one of its collectives is not
an error, so they are left out here."""


@dataclass(frozen=True)
class Collectives:
    """The collectives of this rank, and the one that it waits in (or, if it waits in none, the newest one)."""

    begun: Dict[str, int]
    """Number of collectives begun so far, by process group."""
    group: str
    """Process group of the collective."""
    name: str
    """Name of the collective, for instance ``all_reduce``."""
    number: int
    """Sequence number of the collective in its group."""
    waits: bool
    """Whether this rank still waits in the collective."""

    def __str__(self) -> str:
        return f"{self.name} (number {self.number} of group {self.group})"


def record_collectives() -> None:
    """Switch the flight recorder on. It must be called before the process group is created.

    The recorder keeps only the newest entries.
    """
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE", "128")


def read_collectives() -> Optional[Collectives]:
    """Return the collectives of this rank, or None before the first one and if PyTorch does not record them."""
    import torch
    import torch._C._distributed_c10d as c10d

    name = "_dump_nccl_trace_json" if torch.cuda.is_available() else "_dump_fr_trace_json"
    if not hasattr(c10d, name):
        return None
    record = json.loads(getattr(c10d, name)(includeCollectives=True, onlyActive=False))
    entries = [entry for entry in record.get("entries", []) if entry["process_group"][1] != BACKGROUND_GROUP]
    if not entries:
        return None
    waiting = [entry for entry in entries if not entry["retired"]]
    entry = min(waiting, key=_record_id) if waiting else max(entries, key=_record_id)
    begun = {group: int(status["last_enqueued_collective"]) for group, status in record["pg_status"].items()}
    _, _, name = entry["profiling_name"].rpartition(":")
    return Collectives(begun, str(entry["pg_id"]), name, int(entry["collective_seq_id"]), bool(waiting))


def _record_id(entry: Dict[str, Any]) -> int:
    return int(entry["record_id"])
