"""The verb ``_guard``: the companion process that stops a run or sweep if its launcher is killed."""

import argparse
import os
import signal

import psutil

from ftdist.base.errors import EXIT_DONE
from ftdist.launch.attempt.companion import GRACE_S, end_group, group_members
from ftdist.launch.backends.registry import backend_of_status
from ftdist.launch.sweeps.folder import SweepDir
from ftdist.launch.sweeps.stop import stop_sweep
from ftdist.run.rundir import RunDir


def add_guard_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("place", metavar="RUN_DIR|SWEEP_DIR")
    parser.add_argument("--group", type=int, help="process group to end afterwards")


def guard(args: argparse.Namespace) -> int:
    """Wait until the launcher has ended. If it was killed, stop its run or sweep. See ``attempt/companion.py``."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if os.read(0, 1):  # the launcher has ended by itself
        return EXIT_DONE
    sweep, run = SweepDir(args.place), RunDir(args.place)
    if sweep.exists:
        stop_sweep(sweep)
    else:
        backend_of_status(run.read_status()).stop(run)
    if args.group is not None:
        psutil.wait_procs(group_members(args.group), timeout=GRACE_S)
        end_group(args.group)
    return EXIT_DONE
