"""The table of a sweep's trials."""

import math
import os
from typing import Dict, List, Set

from rich.console import Console
from rich.table import Table

from ftdist.base.output import short_path
from ftdist.launch.runs import banner
from ftdist.launch.runs.liveness import jobs_of, shown_state
from ftdist.launch.sweeps.folder import SweepDir, Trial, best_loss


def swept(trials: List[Trial]) -> Dict[int, str]:
    """The overrides in which trials differ, by number."""
    sets: List[Set[str]] = [set(trial.overrides) for trial in trials]
    common = set.intersection(*sets) if len(sets) > 1 else set()
    return {trial.number: " ".join(word for word in trial.overrides if word not in common) for trial in trials}


def show_table(folder: SweepDir) -> None:
    trials = folder.trials()
    jobs = jobs_of([trial.run.read_status() for trial in trials])
    words = swept(trials)
    rows = []
    for trial in trials:
        loss = best_loss(trial.run)
        shown = "-" if loss is None else f"{loss:.4f}"
        state = shown_state(trial.run.read_status(), jobs) if trial.run.config.is_file() else trial.state
        rows.append((math.inf if loss is None else loss,
                     [shown, state, words[trial.number], short_path(trial.run.path)]))  # fmt: skip
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("held-out loss", "state", "overrides", "run"):
        table.add_column(column, justify="right" if column == "held-out loss" else "left", overflow="fold")
    for _, row in sorted(rows, key=lambda pair: pair[0]):
        table.add_row(*map(banner.cell, row))
    Console(highlight=False, width=None if os.isatty(1) else 200).print(table)
