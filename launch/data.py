"""The verbs ``prepare`` and ``preview``: they need tokenizers, so they run as a process of the data plane."""

import argparse
from typing import List

from ftdist.errors import EXIT_DONE

from . import check, compose, ready


def add_prepare_arguments(parser: argparse.ArgumentParser) -> None:
    compose.add_arguments(parser)


def add_preview_arguments(parser: argparse.ArgumentParser) -> None:
    compose.add_arguments(parser)
    parser.add_argument("-n", type=int, default=2, help="packed rows to show (default 2)")
    parser.add_argument("--loss", action="store_true", help="with the base model's loss of each token")
    parser.add_argument("--html", metavar="FILE", help="write a page to share")


def prepare(args: argparse.Namespace) -> int:
    """Write the prepared data into the cache and print what is in it."""
    return _run(args, ["ftdist.data.main", "prepare", "-"])


def preview(args: argparse.Namespace) -> int:
    """Show a few samples as the model will see them."""
    program = ["ftdist.verify.preview"] if args.loss else ["ftdist.data.main", "preview"]
    return _run(args, [*program, "-", "-n", str(args.n), *(["--html", args.html] if args.html else [])])


def _run(args: argparse.Namespace, command: List[str]) -> int:
    if args.cfg or args.info:
        compose.show(args)
        return EXIT_DONE
    config = compose.compose(args)
    check.resolve_paths(config)  # data is the same for any number of ranks and any device: the rest is not looked at
    ready.convert_model(config)
    ready.run_step(command, config)
    return EXIT_DONE
