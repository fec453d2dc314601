"""What collectives this rank has begun, as PyTorch's flight recorder has them."""

import json
import os
from dataclasses import dataclass
from typing import Any, Dict, Optional

BESIDE_TRAINING = "checkpoints"
"""Description of the process group whose collectives run beside training: to wait in one of them is no fault."""


@dataclass(frozen=True)
class Collectives:
    begun: Dict[str, int]
    """How many, by process group."""
    group: str
    """Process group of the one that this rank waits in; of the newest where it waits in none."""
    name: str
    number: int
    """It is the number-th of its group."""
    waits: bool

    def __str__(self) -> str:
        return f"{self.name} (number {self.number} of group {self.group})"


def record_collectives() -> None:
    """Call it before the process group is made. PyTorch keeps the newest ones only."""
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE", "128")


def read_collectives() -> Optional[Collectives]:
    """None before the first, and where PyTorch does not record them."""
    import torch
    import torch._C._distributed_c10d as c10d

    name = "_dump_nccl_trace_json" if torch.cuda.is_available() else "_dump_fr_trace_json"
    if not hasattr(c10d, name):
        return None
    record = json.loads(getattr(c10d, name)(includeCollectives=True, onlyActive=False))
    entries = [entry for entry in record.get("entries", []) if entry["process_group"][1] != BESIDE_TRAINING]
    if not entries:
        return None
    waiting = [entry for entry in entries if not entry["retired"]]
    entry = min(waiting, key=_order) if waiting else max(entries, key=_order)
    begun = {group: int(status["last_enqueued_collective"]) for group, status in record["pg_status"].items()}
    _, _, name = entry["profiling_name"].rpartition(":")
    return Collectives(begun, str(entry["pg_id"]), name, int(entry["collective_seq_id"]), bool(waiting))


def _order(entry: Dict[str, Any]) -> int:
    return int(entry["record_id"])
