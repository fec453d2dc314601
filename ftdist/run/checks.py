"""One check and how it ended: what the ranks write and the verb prints. [light]"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import List

from rich.console import Console
from rich.table import Table
from rich.text import Text

PASSED, FAILED, NOT_RUN = "passed", "failed", "not run"
MARKS = {PASSED: ("✓", "green"), FAILED: ("✗", "bold red"), NOT_RUN: ("–", "yellow")}
CHECKS, NOTES = "checks.jsonl", "notes.json"


@dataclass(frozen=True)
class Check:
    name: str
    outcome: str
    measured: str = ""
    """The number that was measured, and what it may be."""
    cause: str = ""
    """Why it failed, or why it could not run."""


def passed(name: str, measured: str) -> Check:
    return Check(name, PASSED, measured)


def failed(name: str, cause: str, measured: str = "") -> Check:
    return Check(name, FAILED, measured, cause)


def not_run(name: str, cause: str) -> Check:
    return Check(name, NOT_RUN, "", cause)


def judge(name: str, problems: List[str], measured: str) -> Check:
    """Failed if there are problems, all of which are named."""
    return failed(name, "; ".join(problems), measured) if problems else passed(name, measured)


def append(folder: Path, check: Check) -> None:
    """A check is written as soon as it has ended, so that what comes after it can crash."""
    with (folder / CHECKS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(check)) + "\n")


def read(folder: Path) -> List[Check]:
    path = folder / CHECKS
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [Check(**json.loads(line)) for line in lines]


def count(checks: List[Check]) -> str:
    """``12 passed, 1 not run``."""
    numbers = {outcome: sum(check.outcome == outcome for check in checks) for outcome in MARKS}
    return ", ".join(f"{number} {outcome}" for outcome, number in numbers.items() if number)


def print_checks(checks: List[Check], console: Console) -> None:
    """A line for each: a tick, the name, the measured number or the cause."""
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for check in checks:
        mark, style = MARKS[check.outcome]
        lead = f"{check.outcome}: " if check.outcome != PASSED else ""
        text = "\n".join(part for part in (check.measured, f"{lead}{check.cause}" if check.cause else "") if part)
        table.add_row(Text(mark, style=style), Text(check.name), Text(text))
    console.print(table)
