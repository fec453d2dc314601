"""Numbers about right and wrong answers: the accuracy with its interval, and the comparison of two models."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Dict, Sequence

Z = 1.959963984540054
"""The 97.5 % quantile of the normal distribution: the intervals hold 95 %."""


@dataclass(frozen=True)
class Accuracy:
    """The share of right answers, and its Wilson interval of 95 %."""

    correct: int
    share: float
    low: float
    high: float


@dataclass(frozen=True)
class Change:
    """Two models on the same questions."""

    gained: int
    """Number of questions that the first model answers wrongly and the second one rightly."""
    lost: int
    """Number of questions that the first model answers rightly and the second one wrongly."""
    p: float
    """The p-value of McNemar's exact test."""


def accuracy(right: Sequence[bool]) -> Accuracy:
    """Return the share of right answers with the interval of Wilson (1927, JASA 22, 209).

    Args:
        right: For each question, at least one, whether it was answered rightly.
    """
    count, correct = len(right), sum(right)
    share, spread = correct / count, Z * Z / count
    middle = (share + spread / 2) / (1 + spread)
    half = Z * math.sqrt(share * (1 - share) / count + spread / (4 * count)) / (1 + spread)
    low = 0.0 if correct == 0 else max(middle - half, 0.0)
    return Accuracy(correct, share, low, 1.0 if correct == count else min(middle + half, 1.0))


def change(before: Sequence[bool], after: Sequence[bool]) -> Change:
    """Compare two models that answered the same questions."""
    pairs = list(zip(before, after, strict=True))
    gained, lost = pairs.count((False, True)), pairs.count((True, False))
    return Change(gained, lost, mcnemar(gained, lost))


def mcnemar(gained: int, lost: int) -> float:
    """Return the p-value of McNemar's exact test: the probability of a difference at least as large in either direction
    if each question that changed had been gained or lost with the same probability.
    """
    changed = gained + lost
    tail = sum(math.comb(changed, number) for number in range(min(gained, lost) + 1))
    return min(1.0, 2 * tail / 2**changed)


def compare(before: Sequence[bool], after: Sequence[bool]) -> Dict[str, Any]:
    """Return the accuracies of the base model and of the run, and their comparison, as a value that JSON can hold."""
    return {"base": asdict(accuracy(before)), "run": asdict(accuracy(after)), **asdict(change(before, after))}
