"""The verb ``_guard``: stops a run or sweep whose launcher was killed."""

import argparse
import os
import signal

import psutil

from ftdist.base.errors import EXIT_DONE
from ftdist.launch.attempt.companion import GRACE_S, end_group, members
from ftdist.launch.backends.registry import backend_of_status
from ftdist.launch.sweeps.folder import SweepDir
from ftdist.launch.sweeps.stop import stop_sweep
from ftdist.run.rundir import RunDir


def add_guard_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("place", metavar="RUN_DIR|SWEEP_DIR")
    parser.add_argument("--group", type=int, help="a group of processes to end afterwards")


def guard(args: argparse.Namespace) -> int:
    """Wait for the launcher's end."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if not os.read(0, 1):
        sweep = SweepDir(args.place)
        if sweep.exists:
            stop_sweep(sweep)
        else:
            run = RunDir(args.place)
            backend_of_status(run.read_status()).stop(run)
        if args.group is not None:
            psutil.wait_procs(members(args.group), timeout=GRACE_S)
            end_group(args.group)
    return EXIT_DONE
