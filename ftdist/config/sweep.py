"""The section ``sweep`` of the run config: how the trials of a sweep are compared, and which of them continue."""

from dataclasses import dataclass, field
from enum import Enum
from typing import List, Optional

from ftdist.base.errors import ConfigError


class Direction(Enum):
    minimize = "minimize"
    maximize = "maximize"


@dataclass
class SweepConfig:
    objective: Optional[str] = None
    """Metric by which the trials of a sweep are compared, as ``metrics.jsonl`` names it, such as ``train/loss`` or
    ``eval/NAME/loss``. Its best value after at least one step counts. null: the held-out loss, as a mean over the
    held-out sets."""
    direction: Direction = Direction.minimize
    """Whether a lower or a higher objective is better."""
    rungs: List[int] = field(default_factory=list)
    """Successive halving: optimizer steps at which every trial is evaluated and pauses. The best trials then continue
    to the next rung, and after the last rung to the end of the run. Empty: every trial runs to its end."""
    keep: float = 0.5
    """Share of the trials that continue after each rung, rounded down, but at least one trial. Trials that differ only
    in their seed are counted as one, continue together, and are compared by the mean of their objectives."""


def check_sweep(sweep: SweepConfig, max_steps: Optional[int]) -> None:
    """Check the section ``sweep``.

    Args:
        sweep: The section.
        max_steps: Number of steps of the run, if it is known.

    Raises:
        ConfigError: A value is wrong. The message names the field, its value, and the allowed values.
    """
    if not 0 < sweep.keep < 1:
        raise ConfigError(f"sweep.keep={sweep.keep:g}", "more than 0 and less than 1", "sweep.keep=0.5")
    rungs = sweep.rungs
    if rungs != sorted(set(rungs)) or (rungs and rungs[0] < 1):
        right = ",".join(map(str, sorted({rung for rung in rungs if rung > 0})))
        raise ConfigError(f"sweep.rungs={rungs}", "steps from 1, in increasing order", f"sweep.rungs=[{right}]")
    if rungs and max_steps is not None and rungs[-1] >= max_steps:
        right = ",".join(str(rung) for rung in rungs if rung < max_steps)
        raise ConfigError(f"sweep.rungs={rungs}, but the run ends at train.max_steps={max_steps}",
                          "steps before the end of the run", f"sweep.rungs=[{right}]")  # fmt: skip
