"""The table of faults in docs/reliability.md. Every test in this folder declares its row."""

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, List


@dataclass(frozen=True)
class Fault:
    """One row of the table."""

    area: str
    """The part of ftdist that the fault strikes, such as ``saving``. Rows of an area are shown together."""
    fault: str
    injected: str
    """How the test causes the fault."""
    outcome: str
    """What ftdist must do."""
    test: str


ROWS: List[Fault] = []


def fault(area: str, fault: str, injected: str, outcome: str) -> Callable[[Any], Any]:
    """Decorate a test with its row of the table."""

    def register(test: Any) -> Any:
        ROWS.append(Fault(area, fault, injected, outcome, f"{test.__module__.split('.')[-1]}::{test.__name__}"))
        return test

    return register


def rows() -> List[Fault]:
    """Return all rows, ordered by area and file."""
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        importlib.import_module(f"tests.faults.{path.stem}")
    by_file = sorted(
        dict.fromkeys(ROWS), key=lambda row: row.test.split("::")[0]
    )  # pytest may have imported some before
    areas = list(dict.fromkeys(row.area for row in by_file))
    return sorted(by_file, key=lambda row: areas.index(row.area))
