"""The verb ``report``: write a report of a run, or of several."""

import argparse
import math
import sys
from typing import List

from ftdist.base.counts import count
from ftdist.base.errors import EXIT_DONE, ConfigError
from ftdist.launch.backends.base import DEAD
from ftdist.launch.runs.liveness import observe
from ftdist.launch.runs.programs import run_program
from ftdist.launch.sweeps.folder import SweepDir
from ftdist.run.rundir import RunDir

COMPARED = "report.html"
"""The page in the folder of a sweep that compares its trials."""


def add_report_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dirs", nargs="+", metavar="RUN_DIR|SWEEP_DIR")
    parser.add_argument("--checkpoint", metavar="CHECKPOINT", default="last", help="last (default), best or a step")
    parser.add_argument("--price", type=float, help="price of a device for an hour (report.price_per_device_hour)")
    parser.add_argument("--quick", action="store_true", help="leave out the change of the weights, which takes longer")


def report(args: argparse.Namespace) -> int:
    """Write the report of each run to RUN_DIR/report, as a page, Markdown and JSON, and compare several.

    Raises:
        ConfigError: there is no such run or checkpoint, or the price is no amount.
    """
    if args.price is not None and not 0 <= args.price < math.inf:
        raise ConfigError(f"--price {args.price:g}", "a number of at least 0", "--price 2.5, or leave it out")
    runs = [run for place in args.run_dirs for run in _runs(place)]
    for run in runs:
        if args.checkpoint != "last":
            run.find_checkpoint(args.checkpoint)
    sweeps = [SweepDir(place) for place in args.run_dirs if SweepDir(place).exists]
    more = [*([] if args.price is None else ["--price", str(args.price)]), *["--quick"] * args.quick]
    seen = observe([run.read_status() for run in runs])
    more += [
        word for run, one in zip(runs, seen, strict=True) if one.state == DEAD for word in ("--dead", str(run.path))
    ]
    more += ["--compare", str(sweeps[0].path / COMPARED)] if len(args.run_dirs) == len(sweeps) == 1 else []
    run_program(["ftdist.report.main", "--checkpoint", args.checkpoint, *more, *(str(run.path) for run in runs)])
    return EXIT_DONE


def _runs(place: str) -> List[RunDir]:
    """Return the run of a folder, or the trials of a sweep that have begun. Print a note that names the others.

    Raises:
        ConfigError: the folder is neither, or no trial has begun.
    """
    sweep = SweepDir(place)
    if not sweep.exists:
        return [RunDir.open(place)]
    trials = sweep.trials()
    begun = [trial.run for trial in trials if trial.run.metrics.is_file()]
    if not begun:
        raise ConfigError(f"no trial of {place} has begun", "a trial with metrics", f"ftdist sweep {place} shows them")
    if others := [f"{trial.run.path.name} ({trial.state})" for trial in trials if trial.run not in begun]:
        print(f"note: {count(len(others), 'trial')} of {place} without metrics {'is' if len(others) == 1 else 'are'} "
              f"left out: {', '.join(others)}", file=sys.stderr)  # fmt: skip
    return begun
