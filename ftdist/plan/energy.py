"""The energy that a run used, from what its machines recorded in ``RUN_DIR/energy``.

Each machine writes one file for each attempt. The time between attempts is in no file.
"""

from collections import Counter
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from ftdist.base.json_files import read_json
from ftdist.plan.goodput import Goodput

KWH_J = 3.6e6


def record_name(attempt: int, group: int) -> str:
    """Return the name of the file in which a group of ranks on one machine records the energy of an attempt."""
    return f"attempt-{attempt:05d}.{group:05d}.json"


def energy_of(folder: Path, goodput: Goodput) -> Dict[str, Any]:
    """Return the energy of a run over all machines and attempts.

    Returns:
        ``gpu_kwh`` and ``cpu_kwh`` (processors and their memory), each None if no machine reports it. ``complete``: the
        numbers that are given are those of all machines in all attempts whose ranks began.
    """
    records = [record for path in sorted(folder.glob("attempt-*.json")) if (record := _read(path))]
    devices = _largest((record["attempt"], uuid, joules) for record in records for uuid, joules in _devices(record))
    hosts = _largest((record["attempt"], record["host"], record["cpu_j"]) for record in records
                     if record.get("cpu_j") is not None)  # fmt: skip
    told = {key: Counter(record["attempt"] for record in records if record.get(key) is not None)
            for key in ("gpu", "cpu_j")}  # fmt: skip
    # The energy of the device must be known, and a number that some machines report must come from all of them.
    kinds = {"gpu" if record["cuda"] else "cpu_j" for record in records} | {key for key in told if told[key]}
    wanted = {record["attempt"]: record["groups"] for record in records}
    begun = [attempt.number for attempt in goodput.attempts if attempt.ranks]
    complete = bool(begun and kinds) and all(
        told[kind][number] == wanted.get(number, 1) for number in begun for kind in kinds
    )
    return {"gpu_kwh": _kwh(devices), "cpu_kwh": _kwh(hosts), "complete": complete}


def _largest(found: Any) -> Dict[Tuple[int, str], float]:
    """Return the joules of each counter in each attempt. Two groups of ranks on one machine read the same counters, so
    their numbers are not added: the larger one is used.
    """
    largest: Dict[Tuple[int, str], float] = {}
    for attempt, counter, joules in found:
        largest[attempt, counter] = max(joules, largest.get((attempt, counter), 0.0))
    return largest


def _devices(record: Dict[str, Any]) -> List[Tuple[str, float]]:
    return list((record.get("gpu") or {}).items())


def _kwh(joules: Dict[Tuple[int, str], float]) -> Optional[float]:
    return sum(joules.values()) / KWH_J if joules else None


def _read(path: Path) -> Optional[Dict[str, Any]]:
    """Return a record; None if it is damaged."""
    try:
        record = read_json(path)
    except (OSError, ValueError):
        return None
    good = {"attempt": int, "host": str, "groups": int, "cuda": bool}
    return record if all(isinstance(record.get(name), kind) for name, kind in good.items()) else None
