"""Write the reports of runs as a page, Markdown and JSON: ``python -m ftdist.report.main RUN_DIR…``."""

import argparse
import os
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
from ftdist.report.build import DEAD, build_report, write_report
from ftdist.report.compare import HEAD, compared, comparison
from ftdist.report.markdown import comparison_as_markdown
from ftdist.report.page_compare import compare_page
from ftdist.run.rundir import RunDir

COMPARED = "compare.html"
DEAD_REASON = "its processes ended without recording a reason"


def main(argv: Optional[List[str]] = None) -> int:
    """Write the reports of some runs. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="ftdist report", description="Write the reports of runs.")
    parser.add_argument("run_dirs", nargs="+", help="run directories")
    parser.add_argument("--checkpoint", default="last", help="last, best or a step number")
    parser.add_argument("--price", type=float, help="price of a device for an hour")
    parser.add_argument("--quick", action="store_true", help="leave out what moved")
    parser.add_argument("--compare", type=Path, help="where the page that compares several runs is written")
    parser.add_argument("--dead", action="append", default=[], help="run directories that nothing runs any more")
    args = parser.parse_args(argv)
    return run_main(lambda: _report(args))


def _report(args: argparse.Namespace) -> int:
    runs = [RunDir.open(place) for place in args.run_dirs]
    reports = []
    for run in runs:
        how = {"ending": DEAD, "reason": DEAD_REASON} if str(run.path) in args.dead else {}
        reports.append(build_report(run, args.checkpoint, args.price, args.quick, **how))
        print(f"report: {short_path(write_report(run, reports[-1]))}")
    if len(runs) > 1:
        page = args.compare or runs[0].report / COMPARED
        _compare(runs, reports, page)
        print(f"comparison: {short_path(page)}")
    return EXIT_DONE


def _compare(runs: List[RunDir], reports: List[Dict[str, Any]], page: Path) -> None:
    """Write the page that compares runs, the same as JSON and Markdown beside it, and print its table."""
    names = [short_path(run.path) for run in runs]
    shared = Path(os.path.commonpath([run.path.resolve() for run in runs]))
    short = [str(run.path.resolve().relative_to(shared)) for run in runs]
    pages = [os.path.relpath(run.report_page, page.parent) for run in runs]
    page.write_text(compare_page(shared.name, reports, short, pages), encoding="utf-8")
    write_json(page.with_suffix(".json"), comparison(reports, short))
    text = comparison_as_markdown(shared.name, reports, short)
    page.with_suffix(".md").write_text(text, encoding="utf-8", errors="backslashreplace")
    table = plain_table(*HEAD, texts=3)
    for row in compared(reports, names):
        table.add_row(*map(Text, row))
    show_table(Console(highlight=False), table)


if __name__ == "__main__":
    accept_any_text()
    sys.exit(main())
