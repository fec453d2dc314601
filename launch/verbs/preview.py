"""The verb ``preview``: show a few samples with the trained tokens marked."""

import argparse

from ftdist.launch.config import compose
from ftdist.launch.verbs.prepare import run_data_program


def add_preview_arguments(parser: argparse.ArgumentParser) -> None:
    compose.add_arguments(parser)
    parser.add_argument("-n", type=int, default=2, help="packed rows to show (default 2)")
    parser.add_argument("--loss", action="store_true", help="also show the loss of the untrained model for each token")
    parser.add_argument("--html", metavar="FILE", help="write a page to share")


def preview(args: argparse.Namespace) -> int:
    """Print a few samples as the model will see them."""
    program = ["ftdist.verify.preview"] if args.loss else ["ftdist.data.main", "preview"]
    return run_data_program(args, [*program, "-", "-n", str(args.n), *(["--html", args.html] if args.html else [])])
