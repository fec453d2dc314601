"""The table of the trials of a sweep."""

import statistics
from collections import Counter
from typing import Dict, List, Set, Tuple

from rich.console import Console
from rich.table import Table

from ftdist.base.errors import LaunchError
from ftdist.base.output import short_path
from ftdist.base.tables import FILE_WIDTH, show
from ftdist.config.sweep import SweepConfig
from ftdist.launch.backends.base import Seen, Status
from ftdist.launch.runs import banner
from ftdist.launch.runs.liveness import observe, shown_state
from ftdist.launch.sweeps.folder import SweepDir, Trial
from ftdist.launch.sweeps.objective import format_value, objective_name, require_values, signed
from ftdist.launch.sweeps.replicates import Replicates, group_by_seed
from ftdist.run.rundir import PAUSED

LEFT = ("state", "overrides", "run", "runs")
"""Columns that are aligned to the left."""


def varied_overrides(trials: List[Trial]) -> Dict[int, str]:
    """Return the overrides in which trials differ, by number of the trial."""
    sets: List[Set[str]] = [set(trial.overrides) for trial in trials]
    common = set.intersection(*sets) if len(sets) > 1 else set()
    return {trial.number: " ".join(word for word in trial.overrides if word not in common) for trial in trials}


def show_table(folder: SweepDir) -> None:
    """Print the trials of a sweep with their objectives: those that are done first, the best first.

    Trials that differ only in their seed are one row, with the mean of their objectives and its 95 % interval. Rows
    with the same objective are in the order of their trials. Trials that have paused at a rung come after those that
    are done. All others come last, because their objectives may still change or cannot be compared.
    """
    trials, sweep = folder.trials(), folder.settings()
    statuses = [trial.run.read_status() for trial in trials]
    states = {trial.number: _state(trial, status, seen)
              for trial, status, seen in zip(trials, statuses, observe(statuses), strict=True)}  # fmt: skip
    words, groups = varied_overrides(trials), group_by_seed(trials, sweep)
    repeated = len(groups) < len(trials)
    name = objective_name(sweep)
    columns = (f"mean {name}", "95 % interval", "n", "state", "overrides", "runs") if repeated else \
        (name, "state", "overrides", "run")  # fmt: skip
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, justify="left" if column in LEFT else "right", overflow="fold")
    for group in sorted(groups, key=lambda group: _place(group, sweep, states)):
        row = _repeated_row(group, sweep, states) if repeated else _single_row(group, sweep, states)
        shown = words[group.trials[0].number].split(" ")
        overrides = " ".join(word for word in shown if not repeated or not word.startswith("seed="))
        paths = [short_path(group.trials[0].run.path), *(f"{trial.number:03d}" for trial in group.trials[1:])]
        table.add_row(*map(banner.cell, [*row, overrides, " ".join(paths)]))
    show(Console(highlight=False), table, FILE_WIDTH)
    if sweep.objective is not None:  # it may be misspelled
        try:
            require_values(trials, sweep)
        except LaunchError as error:
            print(f"note: {error}")


def _state(trial: Trial, status: Status, seen: Seen) -> str:
    if not trial.run.config.is_file():
        return trial.state
    state = shown_state(status, seen)
    return f"{state} at step {status.get('step')}" if state == PAUSED else state


def _place(group: Replicates, sweep: SweepConfig, states: Dict[int, str]) -> Tuple[int, int, float, int]:
    """Return the key by which rows are sorted: done, paused (the latest first), others; then the objective."""
    first = group.trials[0]
    paused = [int(trial.run.read_status()["step"]) for trial in group.trials if trial.state == PAUSED]
    ended = all(trial.state == PAUSED or states[trial.number] == "done" for trial in group.trials)
    if not ended:
        best = [value for value in group.best if value is not None]
        return 2, 0, signed(statistics.fmean(best) if best else None, sweep), first.number
    return int(bool(paused)), -min(paused, default=0), group.objective, first.number


def _single_row(group: Replicates, sweep: SweepConfig, states: Dict[int, str]) -> List[str]:
    value = "-" if group.best[0] is None else format_value(group.best[0], sweep)
    return [value, states[group.trials[0].number]]


def _repeated_row(group: Replicates, sweep: SweepConfig, states: Dict[int, str]) -> List[str]:
    value = "-" if group.mean is None else format_value(group.mean, sweep)
    interval = "-" if group.half_width is None else f"± {format_value(group.half_width, sweep)}"
    counted = Counter(states[trial.number] for trial in group.trials)
    state = ", ".join(name if len(counted) == 1 else f"{number} {name}" for name, number in counted.items())
    return [value, interval, str(len(group.values)), state]
