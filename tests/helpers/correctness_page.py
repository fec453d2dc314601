"""The generated parts of docs/correctness.md."""

from pathlib import Path
from typing import Iterable

PAGE = Path(__file__).resolve().parents[2] / "docs" / "correctness.md"


def write_table(name: str, columns: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """Write a table between ``<!-- NAME: generated … -->`` and ``<!-- end of NAME -->`` of the page."""
    columns = list(columns)
    lines = [columns, ["---"] * len(columns), *rows]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    head, rest = PAGE.read_text(encoding="utf-8").split(f"<!-- {name}: ", 1)
    marker, rest = rest.split("\n", 1)
    tail = rest.split(f"<!-- end of {name} -->", 1)[1]
    PAGE.write_text(f"{head}<!-- {name}: {marker}\n{table}\n<!-- end of {name} -->{tail}", encoding="utf-8")
