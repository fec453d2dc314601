"""The verb ``report``: write a report of a run."""

import argparse

from ftdist.base.errors import EXIT_DONE
from ftdist.launch.runs.programs import run_program
from ftdist.run.rundir import RunDir


def add_report_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", metavar="RUN_DIR")
    parser.add_argument("--checkpoint", metavar="CHECKPOINT", default="last", help="last (default), best or a step")


def report(args: argparse.Namespace) -> int:
    """Write the report of a run to RUN_DIR/report, as JSON and as Markdown.

    Raises:
        ConfigError: there is no such run or checkpoint.
    """
    run = RunDir.open(args.run_dir)
    run.find_checkpoint(args.checkpoint)
    run_program(["ftdist.report.main", str(run.path), "--checkpoint", args.checkpoint])
    return EXIT_DONE
