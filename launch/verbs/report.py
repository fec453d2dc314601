"""The verb ``report``: write a report of a run."""

import argparse
import math

from ftdist.base.errors import EXIT_DONE, ConfigError
from ftdist.launch.runs.programs import run_program
from ftdist.run.rundir import RunDir


def add_report_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dirs", nargs="+", metavar="RUN_DIR")
    parser.add_argument("--checkpoint", metavar="CHECKPOINT", default="last", help="last (default), best or a step")
    parser.add_argument("--price", type=float, help="price of a device for an hour (report.price_per_device_hour)")
    parser.add_argument("--quick", action="store_true", help="leave out what moved, which reads the whole model")


def report(args: argparse.Namespace) -> int:
    """Write the report of each run to RUN_DIR/report, as JSON and as Markdown, and compare several.

    Raises:
        ConfigError: there is no such run or checkpoint, or the price is no amount.
    """
    if args.price is not None and not 0 <= args.price < math.inf:
        raise ConfigError(f"--price {args.price:g}", "a number of at least 0", "--price 2.5, or leave it out")
    runs = [RunDir.open(place) for place in args.run_dirs]
    for run in runs:
        if args.checkpoint != "last":
            run.find_checkpoint(args.checkpoint)
    more = [*([] if args.price is None else ["--price", str(args.price)]), *["--quick"] * args.quick]
    run_program(["ftdist.report.main", "--checkpoint", args.checkpoint, *more, *(str(run.path) for run in runs)])
    return EXIT_DONE
