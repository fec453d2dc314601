"""The newest collective of this rank, as PyTorch's flight recorder has it."""

import json
import os
from dataclasses import dataclass
from typing import Any, Dict, List, Optional


@dataclass(frozen=True)
class Collective:
    name: str
    number: int
    """Counts all that this rank has begun."""
    waits: bool
    """It is under way."""

    def __str__(self) -> str:
        return f"{self.name} (number {self.number})"


def record_collectives() -> None:
    """Call it before the process group is made. PyTorch keeps the newest ones only."""
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE", "64")


def newest_collective() -> Optional[Collective]:
    """The newest that this rank has begun, or the oldest of those under way; None before the first, and where PyTorch
    does not record them."""
    entries = _entries()
    if not entries:
        return None
    waiting = [entry for entry in entries if not entry["retired"]]
    entry = min(waiting, key=_number) if waiting else max(entries, key=_number)
    return Collective(entry["profiling_name"].replace("gloo:", "").replace("nccl:", ""), _number(entry) + 1, bool(waiting))


def _number(entry: Dict[str, Any]) -> int:
    return int(entry["record_id"])


def _entries() -> List[Dict[str, Any]]:
    import torch
    import torch._C._distributed_c10d as c10d

    dump = getattr(c10d, "_dump_nccl_trace_json" if torch.cuda.is_available() else "_dump_fr_trace_json", None)
    if dump is None:
        return []
    return json.loads(dump(includeCollectives=True, onlyActive=False)).get("entries", [])
