"""The table of the trials of a sweep."""

import math
import os
from typing import Dict, List, Set

from rich.console import Console
from rich.table import Table

from ftdist.base.output import short_path
from ftdist.launch.runs import banner
from ftdist.launch.runs.liveness import observe, shown_state
from ftdist.launch.sweeps.folder import SweepDir, Trial, best_loss


def varied_overrides(trials: List[Trial]) -> Dict[int, str]:
    """Return the overrides in which trials differ, by number of the trial."""
    sets: List[Set[str]] = [set(trial.overrides) for trial in trials]
    common = set.intersection(*sets) if len(sets) > 1 else set()
    return {trial.number: " ".join(word for word in trial.overrides if word not in common) for trial in trials}


def show_table(folder: SweepDir) -> None:
    """Print the trials of a sweep with their best held-out losses: those that are done first, the lowest loss first.

    Trials with the same loss are in the order of their numbers. The trials that are not done come last, because their
    losses may still change or are of no use.
    """
    trials = folder.trials()
    statuses = [trial.run.read_status() for trial in trials]
    words = varied_overrides(trials)
    rows = []
    for trial, status, seen in zip(trials, statuses, observe(statuses), strict=True):
        loss = best_loss(trial.run)
        score = "-" if loss is None else f"{loss:.4f}"
        state = shown_state(status, seen) if trial.run.config.is_file() else trial.state
        place = (state != "done", math.inf if loss is None else loss, trial.number)
        rows.append((place, [score, state, words[trial.number], short_path(trial.run.path)]))  # fmt: skip
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("held-out loss", "state", "overrides", "run"):
        table.add_column(column, justify="right" if column == "held-out loss" else "left", overflow="fold")
    for _, row in sorted(rows, key=lambda pair: pair[0]):
        table.add_row(*map(banner.cell, row))
    Console(highlight=False, width=None if os.isatty(1) else 200).print(table)
