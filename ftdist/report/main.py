"""Write the reports of runs as JSON and Markdown: ``python -m ftdist.report.main RUN_DIR…``."""

import argparse
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional

from rich.console import Console
from rich.text import Text

from ftdist.base.errors import EXIT_DONE
from ftdist.base.json_files import write_json
from ftdist.base.main import run_main
from ftdist.base.output import accept_any_text, short_path
from ftdist.base.tables import plain_table, show_table
from ftdist.base.terminal import task
from ftdist.config.frozen import load_config
from ftdist.plan.goodput import goodput_of
from ftdist.report.cost import run_cost
from ftdist.report.facts import facts_of, first_and_last
from ftdist.report.markdown import as_markdown, percent
from ftdist.report.moved import what_moved
from ftdist.run.rundir import RunDir
from ftdist.track.jsonl import to_json

JSON, MARKDOWN = "report.json", "report.md"


def main(argv: Optional[List[str]] = None) -> int:
    """Write the reports of some runs. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="ftdist report", description="Write the reports of runs.")
    parser.add_argument("run_dirs", nargs="+", help="run directories")
    parser.add_argument("--checkpoint", default="last", help="last, best or a step number")
    parser.add_argument("--price", type=float, help="price of a device for an hour")
    parser.add_argument("--quick", action="store_true", help="leave out what moved")
    args = parser.parse_args(argv)
    return run_main(lambda: _report(args))


def _report(args: argparse.Namespace) -> int:
    runs = [RunDir.open(place) for place in args.run_dirs]
    reports = []
    for run in runs:
        reports.append(build_report(run, args.checkpoint, args.price, args.quick))
        print(f"report: {short_path(write_report(run, reports[-1]))}")
    if len(runs) > 1:
        _compare(runs, reports)
    return EXIT_DONE


def build_report(
    run: RunDir, which: str = "last", price: Optional[float] = None, quick: bool = False
) -> Dict[str, Any]:
    """Return the report of a run as a value that JSON can hold.

    Args:
        which: The checkpoint that is compared with the base model: ``last``, ``best`` or a step.
        price: Price of a device for an hour. None: that of the config.
        quick: Leave out what moved, which reads the whole model.

    Raises:
        CheckpointError: See ``what_moved``.
        ConfigError: There is no such checkpoint, or the config or the model cannot be read.
    """
    config, goodput, moved = load_config(run.config), goodput_of(run), None
    facts = facts_of(run, config)
    if not quick and (which != "last" or run.published_checkpoints()):
        checkpoint = run.find_checkpoint(which)
        with task(f"comparing {checkpoint.name} with the base model"):
            moved = what_moved(run, checkpoint, config)
    cost = run_cost(run, config, goodput, facts["tokens"] or 0, price)
    return dict(to_json({**facts, "moved": moved, "goodput": goodput.as_dict(), "cost": cost}))


def write_report(run: RunDir, report: Dict[str, Any]) -> Path:
    """Write the report in both formats, and return the path of the Markdown file."""
    run.report.mkdir(exist_ok=True)
    write_json(run.report / JSON, report)
    path = run.report / MARKDOWN
    path.write_text(as_markdown(report), encoding="utf-8")
    return path


def _compare(runs: List[RunDir], reports: List[Dict[str, Any]]) -> None:
    """Print a table of runs with one row for each held-out set."""
    table = plain_table("run", "held-out set", "before", "after", "change", "moved", "goodput", texts=2)
    for run, report in zip(runs, reports, strict=True):
        numbers = [(report["moved"] or {}).get("relative"), report["goodput"]["goodput"]]
        shared = ["-" if value is None else percent(value) for value in numbers]
        for name, points in report["heldout"].items():
            before, after, change = first_and_last(points)
            table.add_row(*map(Text, [short_path(run.path), name, before, after, change, *shared]))
    show_table(Console(highlight=False), table)


if __name__ == "__main__":
    accept_any_text()
    sys.exit(main())
