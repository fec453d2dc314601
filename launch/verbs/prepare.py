"""The verb ``prepare``: write the prepared data into the cache."""

import argparse
from typing import List

from ftdist.base.errors import EXIT_DONE
from ftdist.launch.config import compose
from ftdist.launch.runs import inputs, resolve
from ftdist.launch.runs.programs import run_program
from ftdist.run.identity import pin_revision


def add_prepare_arguments(parser: argparse.ArgumentParser) -> None:
    compose.add_arguments(parser)


def prepare(args: argparse.Namespace) -> int:
    """Fetch the model and the tokenizer, write the prepared data into the cache, and print statistics."""
    return run_data_program(args, ["ftdist.data.main", "prepare", "-"], fetch=True)


def run_data_program(args: argparse.Namespace, command: List[str], fetch: bool = False) -> int:
    """Run a program of the data plane that reads a config from standard input.

    It runs in a process of its own, because it imports the tokenizers library.

    Args:
        fetch: first fetch the model and the tokenizer from the hub.
    """
    if args.cfg or args.info:
        compose.show(args)
        return EXIT_DONE
    config = compose.compose(args)
    resolve.resolve_paths(config)  # the data does not depend on the ranks and their device
    if fetch:
        inputs.fetch_model(config)
    pin_revision(config)  # as in a run, whose prepared data is found by the commit
    inputs.convert_model(config)
    run_program(command, config)
    return EXIT_DONE
