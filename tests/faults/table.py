"""The faults that ftdist is held to survive: every test here carries its row of the table in docs/reliability.md."""

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, List


@dataclass(frozen=True)
class Fault:
    """One row."""

    area: str
    """What is hit: ``saving``, ``loading`` …; rows of an area stand together."""
    fault: str
    injected: str
    """How the test brings it about."""
    outcome: str
    """What must come of it."""
    test: str


ROWS: List[Fault] = []


def fault(area: str, fault: str, injected: str, outcome: str) -> Callable[[Any], Any]:
    """Mark a test as the proof of a row."""

    def register(test: Any) -> Any:
        ROWS.append(Fault(area, fault, injected, outcome, f"{test.__module__.split('.')[-1]}::{test.__name__}"))
        return test

    return register


def rows() -> List[Fault]:
    """All rows, in the order of areas and files."""
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        importlib.import_module(f"tests.faults.{path.stem}")
    areas = list(dict.fromkeys(row.area for row in ROWS))
    return sorted(dict.fromkeys(ROWS), key=lambda row: areas.index(row.area))
