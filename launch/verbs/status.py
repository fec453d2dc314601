"""The verb ``status``: a table of runs."""

import argparse
import contextlib
import os
import sys
import time
from pathlib import Path
from typing import List, Optional

from rich.console import Console

from ftdist.base.errors import EXIT_DONE, ConfigError
from ftdist.base.names import near_paths
from ftdist.base.output import quoted_path, short_path
from ftdist.base.permissions import describe_rights, require_access
from ftdist.base.tables import plain_table, show_table
from ftdist.launch.backends.base import ALIVE, DEAD, Seen, Status
from ftdist.launch.runs.banner import cell
from ftdist.launch.runs.liveness import observe, shown_state
from ftdist.plan.goodput import goodput_of
from ftdist.run.rundir import RunDir

WATCH_S = 5
REASON_LENGTH = 70
"""Characters of a reason in a table of several runs. A table of one run shows the whole reason."""


def add_status_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dirs", nargs="*", metavar="RUN_DIR", help="default: the runs in ./runs")
    parser.add_argument("--watch", action="store_true",
                        help=f"show it again every {WATCH_S} s until no run is under way, or Ctrl-C")  # fmt: skip


def status(args: argparse.Namespace) -> int:
    """Print a table of runs.

    Raises:
        ConfigError: there is no run at one of the places. The runs of the other places are shown before.
    """
    places = [Path(place) for place in args.run_dirs] or [Path("runs")]
    console = Console(highlight=False)
    with contextlib.suppress(KeyboardInterrupt):  # the usual end of --watch
        while _show(places, console, clear=args.watch) and args.watch:
            time.sleep(WATCH_S)
    for folder in (folder for place in places for folder in _unreadable(place)):
        print(f"note: {short_path(folder)} is left out: it {describe_rights(folder)}", file=sys.stderr)
    found = {place: find_runs(place) for place in places}
    if empty := [place for place in places if not found[place]]:
        near = [
            f"ftdist status {quoted_path(other)}"
            for place in empty
            for other in near_paths(str(place))
            if not place.exists()
        ]
        raise ConfigError(f"no run in {', '.join(map(str, empty))}", "a run directory, or a folder of them",
                          " or ".join(near) or "run `ftdist demo` to create a first run")  # fmt: skip
    return EXIT_DONE


def _show(places: List[Path], console: Console, clear: bool = False) -> bool:
    """Print the table of the runs at some places, if there are any. Returns whether one of them is under way.

    Args:
        clear: remove what a terminal shows before.
    """
    runs = [run for place in places for run in find_runs(place)]
    statuses = [run.read_status() for run in runs]
    where = observe(statuses)
    table = plain_table("run", "state", "step", "loss", "tokens/s", "goodput", "checkpoint", texts=2)
    longest = None if len(runs) == 1 else REASON_LENGTH
    for run, found, seen in zip(runs, statuses, where, strict=True):
        table.add_row(*map(cell, status_row(run, found, seen, longest)))
    if clear:
        console.clear()  # does nothing if this is not a terminal
    if runs:
        show_table(console, table)
    return any(seen.state in ALIVE for seen in where)


def find_runs(place: Path) -> List[RunDir]:
    """Return the run at a place, or the runs and the trials of sweeps in a folder, the oldest first.

    Raises:
        AccessError: The folder cannot be listed.
    """
    require_access(place)  # glob() finds nothing in a folder that it cannot list
    if (place / "run.yaml").is_file():
        return [RunDir(place)]
    return [RunDir(config.parent) for depth in ("*", "*-sweep/*") for config in sorted(place.glob(f"{depth}/run.yaml"))]


def _unreadable(place: Path) -> List[Path]:
    """Return the folders in a folder of runs that this user may not read."""
    found = [] if (place / "run.yaml").is_file() else [*place.glob("*"), *place.glob("*-sweep/*")]
    return sorted(path for path in found if path.is_dir() and not os.access(path, os.R_OK | os.X_OK))


def status_row(run: RunDir, found: Status, seen: Seen, longest: Optional[int] = REASON_LENGTH) -> List[str]:
    """Return a row of the table: run, state, step, loss, tokens per second, goodput, age of the newest checkpoint.

    Args:
        found: the run's status.json.
        seen: where the run stands.
        longest: number of characters of the reason. A longer one is cut. None: it is never cut.
    """
    age = found.get("last_checkpoint_time")
    loss, speed = found.get("loss"), found.get("tokens_per_s")
    state = shown_state(found, seen)
    goodput = goodput_of(run, seen.state in ALIVE).value
    reason = found.get("exit_reason") if state in ("failed", "preempted") else None
    if state in (*ALIVE, DEAD) and seen.detail:
        reason = seen.detail
    why = str(reason or "")
    if longest and len(why) > longest:
        why = why[: longest - 1] + "…"
    times = int(found.get("requeues") or 0)
    chain = f" (attempt {int(found.get('attempt', 0)) + 1}, {times} requeue{'s' * (times > 1)})" if times else ""
    return [
        short_path(run.path),
        state + chain + (f": {why}" if why else ""),
        f"{found.get('step', 0)}/{found.get('max_steps', '?')}",
        "-" if loss is None else f"{loss:.4f}",
        "-" if speed is None else f"{speed:,.0f}",
        "-" if goodput is None else f"{goodput:.0%}",
        "-" if age is None else f"step {found.get('last_checkpoint_step')}, {_span(time.time() - age)} ago",
    ]


def _span(seconds: float) -> str:
    """Return a duration in its largest unit: ``3 h``."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
