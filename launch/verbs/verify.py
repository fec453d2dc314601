"""The verb ``verify``: check a config on this machine before it is run anywhere."""

import argparse

from ftdist.base.errors import EXIT_DONE, EXIT_FAILED
from ftdist.launch.config import compose
from ftdist.launch.runs.verify import run_checks, show


def add_verify_arguments(parser: argparse.ArgumentParser) -> None:
    compose.add_arguments(parser)
    parser.add_argument("--quick", action="store_true",
                        help="run only the checks that take seconds: use a small stand-in for the model, and skip the "
                        "checks of saving")  # fmt: skip


def verify(args: argparse.Namespace) -> int:
    """Check a config and print a table of the checks. Returns 1 if one failed, else 0."""
    if args.cfg or args.info:
        compose.show(args)
        return EXIT_DONE
    verified = run_checks(compose.compose(args), args.quick)
    show(verified)
    return EXIT_DONE if verified.good else EXIT_FAILED
