"""Results of the checks of ``ftdist verify``: ranks write them to a file, and the command prints them."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import List, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ftdist.base.counts import count

PASSED, FAILED, NOT_RUN = "passed", "failed", "not run"
MARKS = {PASSED: ("✓", "green"), FAILED: ("✗", "bold red"), NOT_RUN: ("–", "yellow")}
CHECKS, NOTES = "checks.jsonl", "notes.json"


@dataclass(frozen=True)
class Check:
    """The result of one check."""

    name: str
    outcome: str
    """``PASSED``, ``FAILED`` or ``NOT_RUN``."""
    measured: str = ""
    """The measured number and its limit."""
    cause: str = ""
    """Why the check failed or could not run."""


def passed(name: str, measured: str) -> Check:
    """Return the result of a check that passed."""
    return Check(name, PASSED, measured)


def failed(name: str, cause: str, measured: str = "") -> Check:
    """Return the result of a check that failed."""
    return Check(name, FAILED, measured, cause)


def not_run(name: str, cause: str) -> Check:
    """Return the result of a check that could not run."""
    return Check(name, NOT_RUN, "", cause)


def differing(weights: Sequence[str], what: str) -> List[str]:
    """Return the problem that weights differ, as a list for ``judge``. Empty if there are no such weights.

    Args:
        weights: names of the weights that differ.
        what: what they should equal.
    """
    found = count(len(weights), "weight differs", "weights differ")
    return [f"{found} from {what}, for example {weights[0]}"] if weights else []


def judge(name: str, problems: List[str], measured: str) -> Check:
    """Return a failed check that names all problems, or a passed check if there are none."""
    return failed(name, "; ".join(problems), measured) if problems else passed(name, measured)


def append(folder: Path, check: Check) -> None:
    """Write the result of a check to the file of results. It is then kept if a later check crashes."""
    with (folder / CHECKS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(check)) + "\n")


def read_checks(folder: Path) -> List[Check]:
    """Return the results that were written so far."""
    path = folder / CHECKS
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [Check(**json.loads(line)) for line in lines]


def count_outcomes(checks: List[Check]) -> str:
    """Return the numbers of checks by outcome as text: ``12 passed, 1 not run``."""
    numbers = {outcome: sum(check.outcome == outcome for check in checks) for outcome in MARKS}
    return ", ".join(f"{number} {outcome}" for outcome, number in numbers.items() if number)


def print_checks(checks: List[Check], console: Console) -> None:
    """Print a row for each check: a mark, the name, and the measured number or the cause."""
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for check in checks:
        mark, style = MARKS[check.outcome]
        lead = f"{check.outcome}: " if check.outcome != PASSED else ""
        text = "\n".join(part for part in (check.measured, f"{lead}{check.cause}" if check.cause else "") if part)
        table.add_row(Text(mark, style=style), Text(check.name), Text(text))
    console.print(table)
