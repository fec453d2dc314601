"""The verb ``sweep``: a table of the trials of a sweep, the best first."""

import argparse

from ftdist.base.errors import EXIT_DONE, ConfigError
from ftdist.launch.sweeps.folder import SweepDir
from ftdist.launch.sweeps.table import show_table


def add_sweep_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="SWEEP_DIR", help="the folder of a sweep: runs/<date>-<time>-<name>-sweep")


def sweep(args: argparse.Namespace) -> int:
    """Print a table of a sweep's trials, the best first.

    Raises:
        ConfigError: the folder is not that of a sweep.
    """
    folder = SweepDir(args.folder)
    if not folder.exists:
        raise ConfigError(f"{args.folder} holds no {folder.request.name}", "the folder of a sweep",
                          "run `ftdist train … -m key=1,2` to create a sweep")  # fmt: skip
    show_table(folder)
    return EXIT_DONE
