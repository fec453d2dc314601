"""The verb ``sweep``: the trials of a sweep, best first."""

import argparse
import json
import os
from pathlib import Path
from typing import Any, Dict, List, Optional

from rich.console import Console
from rich.table import Table

from ftdist.errors import EXIT_DONE, ConfigError
from ftdist.rundir import RunDir, read_records

from . import banner
from .alive import jobs_of, liveness

INDEX = "index.jsonl"


def add_sweep_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="the folder of a sweep: runs/<date>-<time>-<name>-sweep")


def sweep(args: argparse.Namespace) -> int:
    """Print a table of a sweep's trials: what was swept, state, best held-out loss, sorted by it."""
    trials = read_index(Path(args.folder))
    jobs = jobs_of([RunDir(trial["run_dir"]).read_status() for trial in trials])
    overrides = [set(trial["overrides"]) for trial in trials]
    common = set.intersection(*overrides) if len(overrides) > 1 else set()
    rows = []
    for trial in trials:
        run = RunDir(trial["run_dir"])
        loss = best_loss(run)
        shown = "-" if loss is None else f"{loss:.4f}"
        state = liveness(run.read_status(), jobs) if run.config.is_file() else "not started"
        swept = " ".join(word for word in trial["overrides"] if word not in common)
        rows.append((loss if loss is not None else float("inf"), [shown, state, swept, banner.shown(run.path)]))
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("held-out loss", "state", "overrides", "run"):
        table.add_column(column, justify="right" if column == "held-out loss" else "left", overflow="fold")
    for _, row in sorted(rows, key=lambda pair: pair[0]):
        table.add_row(*map(banner.cell, row))
    Console(highlight=False, width=None if os.isatty(1) else 200).print(table)
    return EXIT_DONE


def read_index(folder: Path) -> List[Dict[str, Any]]:
    """What the sweep wrote of each trial that it has started.

    Raises:
        ConfigError: the folder is not one of a sweep, or its index is not what a sweep writes.
    """
    index = folder / INDEX
    if not index.is_file():
        raise ConfigError(f"{folder} holds no {INDEX}", "the folder of a sweep", "ftdist train … -m key=1,2 makes one")
    trials = read_records(index)
    for trial in trials:
        words = trial.get("overrides")
        listed = isinstance(words, list) and all(isinstance(word, str) for word in words)
        if not listed or not isinstance(trial.get("run_dir"), str):
            raise ConfigError(f"{index} holds {json.dumps(trial)[:100]}", "run_dir and overrides of each trial")
    return trials


def best_loss(run: RunDir) -> Optional[float]:
    """The lowest held-out loss, a mean over the held-out sets; None before the first evaluation."""
    losses = []
    for record in run.read_metrics():
        found = [value for name, value in record.items() if name.startswith("eval/") and name.endswith("/loss")]
        if found and all(isinstance(value, (int, float)) for value in found):
            losses.append(sum(found) / len(found))
    return min(losses, default=None)
