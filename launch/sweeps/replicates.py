"""Replicates are trials that differ only in their seed. They are compared with other trials by their mean objective."""

import math
import statistics
from dataclasses import dataclass
from typing import Dict, List, Optional, Tuple

from ftdist.config.sweep import SweepConfig
from ftdist.launch.sweeps.folder import Trial
from ftdist.launch.sweeps.objective import ENDED, best_value, signed

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Replicates:
    """Trials that differ only in their seed. A trial may be alone in its group."""

    trials: List[Trial]
    best: List[Optional[float]]
    """The best value of each trial, whatever its state. None if it has none yet."""
    values: List[float]
    """The best values of the trials that are done or have paused."""
    objective: float
    """Mean of ``values`` as a number that is lower for better trials. Infinite if one of the trials has no value."""

    @property
    def mean(self) -> Optional[float]:
        return statistics.fmean(self.values) if self.values else None

    @property
    def half_width(self) -> Optional[float]:
        """Half the width of the 95 % confidence interval of the mean, by Student's t. None for less than two values."""
        count = len(self.values)
        if count < 2:
            return None
        return student_t(count - 1) * statistics.stdev(self.values) / math.sqrt(count)


def group_by_seed(trials: List[Trial], sweep: SweepConfig) -> List[Replicates]:
    """Group the trials that differ only in their seed, in the order of their first trials."""
    together: Dict[Tuple[str, ...], List[Trial]] = {}
    for trial in trials:
        alike = tuple(word for word in trial.overrides if word.lstrip("+").partition("=")[0] != "seed")
        together.setdefault(alike, []).append(trial)
    return [_replicates(members, sweep) for members in together.values()]


def _replicates(trials: List[Trial], sweep: SweepConfig) -> Replicates:
    best = [best_value(trial.run, sweep) for trial in trials]
    values = [value for trial, value in zip(trials, best, strict=True) if value is not None and trial.state in ENDED]
    mean = statistics.fmean(values) if len(values) == len(trials) else None
    return Replicates(trials, best, values, signed(mean, sweep))


def student_t(freedom: int, confidence: float = CONFIDENCE) -> float:
    """Return the t for which Student's distribution has ``confidence`` of its mass between −t and t.

    For a whole number of degrees of freedom the mass is a finite sum (Abramowitz and Stegun, 26.7.3 and 26.7.4). This
    function inverts it by bisection.

    Args:
        freedom: degrees of freedom, from 1.
    """
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        angle = (low + high) / 2
        low, high = (angle, high) if _mass(freedom, angle) < confidence else (low, angle)
    return math.tan(low) * math.sqrt(freedom)


def _mass(freedom: int, angle: float) -> float:
    """Return the mass of Student's distribution between −t and t, where t = tan(angle) · √freedom."""
    odd = freedom % 2
    term = math.cos(angle) if odd else 1.0
    total = term if freedom > 1 else 0.0
    for number in range(2 + odd, freedom - 1, 2):
        term *= math.cos(angle) ** 2 * (number - 1) / number
        total += term
    return 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total
