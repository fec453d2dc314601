"""The result of a benchmark: a table, its numbers, and how they were measured."""

import statistics
import time
from dataclasses import asdict, dataclass, field
from typing import Any, Dict, List, Sequence

FEW = 8
"""With fewer values than this, the range is shown; otherwise the quartiles."""


@dataclass(frozen=True)
class Spread:
    """The median and the spread of repeated measurements."""

    median: float
    low: float
    """First quartile, or the smallest of few values."""
    high: float
    """Third quartile, or the largest of few values."""
    count: int

    def show(self, unit: str, scale: float = 1.0, digits: int = 2) -> str:
        values = [f"{value * scale:.{digits}f}" for value in (self.median, self.low, self.high)]
        return f"{values[0]} {unit} ({values[1]} – {values[2]})"


def spread(values: Sequence[float]) -> Spread:
    if len(values) < FEW:
        return Spread(statistics.median(values), min(values), max(values), len(values))
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(middle, low, high, len(values))


@dataclass(frozen=True)
class Section:
    """The section of one benchmark on the page."""

    name: str
    title: str
    about: str
    """How it was measured, in Markdown."""
    header: List[str]
    rows: List[List[str]]
    figures: Dict[str, Any]
    """The numbers of the table in seconds, bytes and shares, for programs."""
    date: str = field(default_factory=lambda: time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()))

    def markdown(self) -> str:
        lines = [self.header, ["---"] * len(self.header), *self.rows]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return f"## {self.title}\n\n{table}\n\n{self.about}"

    def as_dict(self) -> Dict[str, Any]:
        return asdict(self)
