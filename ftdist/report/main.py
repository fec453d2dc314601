"""Write the report of a run as JSON and Markdown: ``python -m ftdist.report.main RUN_DIR``."""

import argparse
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional

from ftdist.base.errors import EXIT_DONE
from ftdist.base.json_files import write_json
from ftdist.base.main import run_main
from ftdist.base.output import accept_any_text, short_path
from ftdist.base.terminal import task
from ftdist.config.frozen import load_config
from ftdist.plan.goodput import goodput_of
from ftdist.report.markdown import as_markdown
from ftdist.report.moved import what_moved
from ftdist.run.rundir import RunDir

JSON, MARKDOWN = "report.json", "report.md"


def main(argv: Optional[List[str]] = None) -> int:
    """Write the report of a run. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="ftdist report", description="Write a report of a run.")
    parser.add_argument("run_dir", help="a run directory")
    parser.add_argument("--checkpoint", default="last", help="last, best or a step number")
    args = parser.parse_args(argv)
    return run_main(lambda: _report(RunDir.open(args.run_dir), args.checkpoint))


def _report(run: RunDir, which: str) -> int:
    checkpoint = run.find_checkpoint(which)
    with task(f"comparing {checkpoint.name} with the base model"):
        report = build_report(run, checkpoint)
    print(f"report: {short_path(write_report(run, report))}")
    return EXIT_DONE


def build_report(run: RunDir, checkpoint: Path) -> Dict[str, Any]:
    """Return the report of a run as a value that JSON can hold.

    Raises:
        CheckpointError: See ``what_moved``.
        ConfigError: The config or the base model cannot be read.
    """
    config = load_config(run.config)
    return {
        "run": config.name,
        "moved": what_moved(run, checkpoint, config),
        "goodput": goodput_of(run).as_dict(),
    }


def write_report(run: RunDir, report: Dict[str, Any]) -> Path:
    """Write the report in both formats, and return the path of the Markdown file."""
    run.report.mkdir(exist_ok=True)
    write_json(run.report / JSON, report)
    path = run.report / MARKDOWN
    path.write_text(as_markdown(report), encoding="utf-8")
    return path


if __name__ == "__main__":
    accept_any_text()
    sys.exit(main())
