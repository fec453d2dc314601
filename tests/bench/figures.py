"""What a benchmark returns: a table, the numbers behind it, and how they were measured."""

import statistics
import time
from dataclasses import asdict, dataclass, field
from typing import Any, Dict, List, Sequence

FEW = 8
"""Of fewer values than this the whole range is told, of more the quartiles."""


@dataclass(frozen=True)
class Spread:
    """The middle of repeated measurements, and how far they lie apart."""

    median: float
    low: float
    """First quartile; of few values the smallest."""
    high: float
    """Third quartile; of few values the largest."""
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
    """One benchmark."""

    name: str
    title: str
    about: str
    """How it was measured: Markdown."""
    header: List[str]
    rows: List[List[str]]
    figures: Dict[str, Any]
    """The same in numbers, for programs: seconds, bytes, shares."""
    date: str = field(default_factory=lambda: time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()))

    def markdown(self) -> str:
        lines = [self.header, ["---"] * len(self.header), *self.rows]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return f"## {self.title}\n\n{table}\n\n{self.about}"

    def as_dict(self) -> Dict[str, Any]:
        return asdict(self)
