"""The verb ``status``: a table of runs."""

import argparse
import contextlib
import os
import sys
import time
from pathlib import Path
from typing import Dict, List, Optional, Tuple

from rich.console import Console

from ftdist.base.counts import count
from ftdist.base.errors import EXIT_DONE, ConfigError
from ftdist.base.names import near_paths
from ftdist.base.output import quoted_path, short_path
from ftdist.base.permissions import describe_rights, require_access
from ftdist.base.tables import plain_table, show_table
from ftdist.launch.backends.base import ALIVE, DEAD, Seen, Status
from ftdist.launch.runs.banner import cell
from ftdist.launch.runs.liveness import observe, shown_state
from ftdist.plan.goodput import goodput_of
from ftdist.run.rundir import RUN_CONFIG, RunDir

WATCH_S = 5
COLUMNS = ("run", "state", "step", "loss", "tokens/s", "goodput", "checkpoint")
REASON_LENGTH = 70
"""Characters of a reason in a table of several runs. A table of one run shows the whole reason."""


def add_status_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dirs", nargs="*", metavar="RUN_DIR", help="default: the runs in ./runs")
    parser.add_argument("--watch", action="store_true",
                        help=f"show it again every {WATCH_S} s until no run is under way, or Ctrl-C; in a file or a "
                             "pipe: one line for each change of a state or a newest checkpoint")  # fmt: skip


def status(args: argparse.Namespace) -> int:
    """Print a table of runs.

    Raises:
        ConfigError: there is no run at one of the places. The runs of the other places are shown before.
    """
    places = [Path(place) for place in args.run_dirs] or [Path("runs")]
    console = Console(highlight=False)
    watch = _Watch(places, console)
    with contextlib.suppress(KeyboardInterrupt):  # the usual end of --watch
        while watch.show(clear=args.watch) and args.watch:
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


class _Watch:
    """Prints the table of the runs at some places. A terminal shows the table again and again. A file gets the whole
    table once, and then only the rows that have changed."""

    def __init__(self, places: List[Path], console: Console) -> None:
        self._places, self._console = places, console
        self._shown: Dict[Path, Tuple[object, ...]] = {}
        """The state and the newest checkpoint of each run, as they were printed last."""

    def show(self, clear: bool) -> bool:
        """Print the table if there are runs, or only what has changed. Returns whether a run is under way.

        Args:
            clear: remove what a terminal shows before.
        """
        runs = [run for place in self._places for run in find_runs(place)]
        statuses = [run.read_status() for run in runs]
        where = observe(statuses)
        longest = None if len(runs) == 1 else REASON_LENGTH
        rows = [status_row(run, found, seen, longest) for run, found, seen in zip(runs, statuses, where, strict=True)]
        marks: Dict[Path, Tuple[object, ...]] = {
            run.path: (row[1], found.get("last_checkpoint_step"))
            for run, found, row in zip(runs, statuses, rows, strict=True)
        }
        if self._console.is_terminal or not self._shown:
            self._show_table(rows, clear)
        else:
            for run, row in zip(runs, rows, strict=True):
                if marks[run.path] != self._shown.get(run.path):
                    print(_describe_change(row), flush=True)
        self._shown = marks
        return any(seen.state in ALIVE for seen in where)

    def _show_table(self, rows: List[List[str]], clear: bool) -> None:
        table = plain_table(*COLUMNS, texts=2)
        for row in rows:
            table.add_row(*map(cell, row))
        if clear:
            self._console.clear()  # does nothing if this is not a terminal
        if rows:
            show_table(self._console, table)
            sys.stdout.flush()


def _describe_change(row: List[str]) -> str:
    """Return a row in one line, with the time: ``2026-01-01 12:00:00  runs/a  running  step 5/10  loss 1.2``."""
    values = [f"{name} {value}" for name, value in zip(COLUMNS[2:-1], row[2:-1], strict=True) if value != "-"]
    saved = [f"checkpoint {row[-1].partition(',')[0]}"] if row[-1] != "-" else []
    return "  ".join([time.strftime("%Y-%m-%d %H:%M:%S"), row[0], row[1], *values, *saved])


def find_runs(place: Path) -> List[RunDir]:
    """Return the run at a place, or the runs and the trials of sweeps in a folder, the oldest first.

    Raises:
        AccessError: The folder cannot be listed.
    """
    require_access(place)  # glob() finds nothing in a folder that it cannot list
    if (place / RUN_CONFIG).is_file():
        return [RunDir(place)]
    depths = ("*", "*-sweep/*")
    return [RunDir(config.parent) for depth in depths for config in sorted(place.glob(f"{depth}/{RUN_CONFIG}"))]


def _unreadable(place: Path) -> List[Path]:
    """Return the folders in a folder of runs that this user may not read."""
    found = [] if (place / RUN_CONFIG).is_file() else [*place.glob("*"), *place.glob("*-sweep/*")]
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
    reason = found.get("exit_reason") if state in ("failed", "preempted", "done") else None
    if state in (*ALIVE, DEAD) and seen.detail:
        reason = seen.detail
    why = str(reason or "")
    if longest and len(why) > longest:
        why = why[: longest - 1] + "…"
    times = int(found.get("requeues") or 0)
    chain = f" (attempt {int(found.get('attempt', 0))}, {count(times, 'requeue')})" if times else ""
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
