"""The verbs ``prepare`` and ``preview``: they need tokenizers, so they run as a process of the data plane."""

import argparse
from typing import List

from ftdist.base.errors import EXIT_DONE
from ftdist.launch.config import compose
from ftdist.launch.runs import ready, resolve


def add_prepare_arguments(parser: argparse.ArgumentParser) -> None:
    compose.add_arguments(parser)


def prepare(args: argparse.Namespace) -> int:
    """Write the prepared data into the cache and print what is in it."""
    return run_data_program(args, ["ftdist.data.main", "prepare", "-"])


def run_data_program(args: argparse.Namespace, command: List[str]) -> int:
    if args.cfg or args.info:
        compose.show(args)
        return EXIT_DONE
    config = compose.compose(args)
    resolve.resolve_paths(config)  # data is the same for any number of ranks and any device: the rest is not looked at
    ready.convert_model(config)
    ready.run_step(command, config)
    return EXIT_DONE
