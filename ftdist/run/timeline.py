"""The timeline of a run, ``RUN_DIR/timeline.jsonl``: when the run entered which phase, over all its attempts.

The launcher and rank 0 append to it. Unlike metrics.jsonl it is never cut, so it also knows the steps that were lost.

A record has ``time`` (seconds since 1970), ``attempt`` and ``phase``. Those that rank 0 writes while it trains have
``step``: the number of optimizer steps done. The end of an attempt has ``state``, and the begin of an attempt that a
scheduler has started again has ``requeued``.
"""

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any, Dict, List

from ftdist.base.json_files import read_records

QUEUE, PREPARING, STARTING, LOADING = "queue", "preparing", "starting", "loading"
STEPS, EVALUATING, SAVING, EXPORTING, ENDED = "steps", "evaluating", "saving", "exporting", "ended"
PHASES = (QUEUE, PREPARING, STARTING, LOADING, STEPS, EVALUATING, SAVING, EXPORTING, ENDED)
"""The phases of a run. In the phase after the end of an attempt, no process of the run exists and no job is queued."""
PHASE_OF_STATE = {"queued": QUEUE, "starting": STARTING, "done": ENDED, "failed": ENDED, "preempted": ENDED,
                  "paused": ENDED}  # fmt: skip
"""The phase that begins when status.json gets a state. In the state ``running``, rank 0 records the phases itself."""
BEAT_S = 30.0
"""Seconds after which a run in ``steps`` writes another record. So a run that was killed ended at most this long after
its last record."""

Timeline = List[Dict[str, Any]]


def append(path: Path, phase: str, attempt: int, **fields: Any) -> None:
    """Append a record. If it cannot be written, for example because the disk is full, it is left out.

    Args:
        path: The file.
        fields: More fields. ``time`` is now by default.
    """
    record = {"time": time.time(), "attempt": attempt, "phase": phase, **fields}
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
    with contextlib.suppress(OSError):
        file = os.open(path, flags, 0o666)  # the umask applies to it
        try:
            os.write(file, json.dumps(record).encode() + b"\n")  # one write, so that records of two processes never mix
        finally:
            os.close(file)


def read(path: Path) -> Timeline:
    """Return the records in the order of their times. Lines that are no records are left out."""
    found = [record for record in read_records(path) if _is_record(record)]
    return sorted(found, key=lambda record: float(record["time"]))


def _is_record(record: Dict[str, Any]) -> bool:
    kinds: Dict[str, Any] = {"time": (int, float), "attempt": int, "phase": str}
    return all(isinstance(record.get(name), kind) for name, kind in kinds.items()) and record["phase"] in PHASES
