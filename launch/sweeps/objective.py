"""The objective of a trial: the number by which a sweep compares its trials."""

import math
from typing import Any, Dict, Iterable, List, Optional

from ftdist.base.errors import LaunchError
from ftdist.base.names import nearest
from ftdist.config.sweep import Direction, SweepConfig
from ftdist.launch.sweeps.folder import Trial
from ftdist.run.prepared import GENERAL
from ftdist.run.rundir import PAUSED, RunDir

HELDOUT_LOSS = "held-out loss"
GROWING = ("forgetting/kl", "perf/goodput", "perf/device_hours")
"""Metrics that describe the whole run until an evaluation. Most of them get worse from one evaluation to the next, so
their best value would be an early one. Trials are therefore compared by the newest value. The same holds for all
metrics of general texts."""
ENDED = ("done", PAUSED)
"""States in which a trial has an objective."""


def objective_name(sweep: SweepConfig) -> str:
    """Return the name of the objective, for the user."""
    return sweep.objective or HELDOUT_LOSS


def best_value(run: RunDir, sweep: SweepConfig) -> Optional[float]:
    """Return the best value of the objective after at least one step. For metrics that grow (see ``GROWING``), return
    the newest value. None if there is no value yet, or the newest value of such a metric is not finite.

    Values from before the first step do not depend on the trial's settings. Other values that are not finite are
    ignored.
    """
    name, records = sweep.objective, _after_a_step(run)
    if name is not None and (name in GROWING or name.startswith(f"{GENERAL}/")):
        records = [record for record in records if name in record][-1:]
    means = [sum(numbers) / len(numbers) for record in records if (numbers := _numbers(record, name))]
    return (max if sweep.direction is Direction.maximize else min)(filter(math.isfinite, means), default=None)


def _after_a_step(run: RunDir) -> List[Dict[str, Any]]:
    """Return the records of metrics.jsonl from after the first step."""
    return [record for record in run.read_metrics() if int(record.get("step", 0)) >= 1]


def _numbers(record: Dict[str, Any], name: Optional[str]) -> List[float]:
    """Return the numbers of the objective in a record of metrics.jsonl: of one metric, or all held-out losses. Empty if
    there are none.
    """
    names = [n for n in record if n.startswith("eval/") and n.endswith("/loss")] if name is None else [name]
    try:
        return [float(record[name]) for name in names if name in record]  # also the texts "nan" and "inf"
    except (TypeError, ValueError):
        return []


def objective(run: RunDir, sweep: SweepConfig) -> float:
    """Return what a sweeper minimizes. With ``sweep.direction=maximize`` it is minus the best value.

    It is infinite for a trial that is neither done nor paused at a rung, so that sweepers do not have to know about
    failures.
    """
    return signed(best_value(run, sweep) if run.read_status().get("state") in ENDED else None, sweep)


def signed(value: Optional[float], sweep: SweepConfig) -> float:
    """Return a number that is lower for a better value of the objective. Infinite if there is no value."""
    if value is None:
        return math.inf
    return -value if sweep.direction is Direction.maximize else value


def describe_value(run: RunDir, sweep: SweepConfig) -> str:
    """Return ``: NAME VALUE``, to be added to a line about a trial. Empty if there is no value yet."""
    value = best_value(run, sweep)
    return "" if value is None else f": {objective_name(sweep)} {format_value(value, sweep)}"


def format_value(value: float, sweep: SweepConfig) -> str:
    """Return a value of the objective as text. A loss has four decimals."""
    return f"{value:.4f}" if sweep.objective is None else f"{value:.6g}"


def require_values(trials: Iterable[Trial], sweep: SweepConfig) -> None:
    """Check that trials which have ended well have recorded the objective, even if it was never finite.

    Raises:
        LaunchError: a trial has not. The message names the metrics that it has recorded.
    """
    for trial in trials:
        if trial.state not in ENDED or any(_numbers(record, sweep.objective) for record in _after_a_step(trial.run)):
            continue
        if sweep.objective is None:
            expected = "a held-out loss of each trial"
            fix = "configure held-out data (data.heldout or data.heldout_share) and train.eval_every=N"
        else:
            names = sorted({name for record in trial.run.read_metrics() for name in record if "/" in name})
            expected = f"one of the metrics that it has recorded: {', '.join(names)}"
            fix = " or ".join(f"sweep.objective={name}" for name in nearest(sweep.objective, names) or names[:1])
        raise LaunchError(f"the trials are compared by {objective_name(sweep)}, and trial {trial.run.path} has none "
                          "after its first step", expected, fix)  # fmt: skip
