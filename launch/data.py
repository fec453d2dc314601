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


def prepare(args: argparse.Namespace) -> int:
    """Write the prepared data into the cache and print what is in it."""
    return _run(args, ["prepare", "-"])


def preview(args: argparse.Namespace) -> int:
    """Print a few samples as the model will see them."""
    return _run(args, ["preview", "-", "-n", str(args.n)])


def _run(args: argparse.Namespace, command: List[str]) -> int:
    if args.cfg or args.info:
        compose.show(args)
        return EXIT_DONE
    config = compose.compose(args)
    check.resolve_paths(config)  # data is the same for any number of ranks and any device: the rest is not looked at
    ready.convert_model(config)
    ready.run_step(["ftdist.data.main", *command], config)
    return EXIT_DONE
