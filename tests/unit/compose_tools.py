"""Compose a config from words of a command line, as the verbs do it."""

import argparse

from ftdist.config.schema import RunConfig
from ftdist.launch.config import compose


def parsed(*words: str) -> argparse.Namespace:
    """Parse the words of a verb that starts from a config and knows sweeps."""
    parser = argparse.ArgumentParser()
    compose.add_arguments(parser, sweep=True)
    return parser.parse_intermixed_args(list(words))


def composed(*words: str) -> RunConfig:
    """Return the config of these words."""
    return compose.compose(parsed(*words))
