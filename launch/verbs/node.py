"""The verb ``node``: the ranks of one machine, in a run on several machines."""

import argparse
import contextlib
import os
import signal
import threading
import time

from ftdist.base.errors import ConfigError
from ftdist.config.frozen import load_config
from ftdist.launch.backends.nodes import run_node
from ftdist.run.rundir import RunDir

BETWEEN_INTERRUPTS_S = 0.2


def add_node_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", metavar="RUN_DIR")
    parser.add_argument("--rank", type=int, required=True, help="index of this machine; the first machine is 0")
    parser.add_argument("--attempt", type=int, default=0, help="number of the attempt; the same on all machines")
    parser.add_argument("--watch", action="store_true", help="stop when standard input closes")


def node(args: argparse.Namespace) -> int:
    """Run the ranks of this machine. Returns the exit code.

    Raises:
        ConfigError: there is no such run, or it has fewer machines.
        LaunchError: the machines did not find each other, or a rank failed.
    """
    if args.watch:
        threading.Thread(target=_stop_at_end_of_input, daemon=True).start()
    run = RunDir.open(args.run_dir)
    config = load_config(run.config)
    if not 0 <= args.rank < config.launch.nnodes:
        raise ConfigError(f"--rank {args.rank}, but the run has launch.nnodes={config.launch.nnodes}",
                          f"the index of a machine, 0 to {config.launch.nnodes - 1}",
                          "run the command that the first machine printed for this machine")  # fmt: skip
    return run_node(config, run, args.rank, args.attempt, begun=args.watch)  # a launcher reaches it over ssh


def _stop_at_end_of_input() -> None:
    with contextlib.suppress(OSError):
        while os.read(0, 1024):
            pass
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(BETWEEN_INTERRUPTS_S)
    os.kill(os.getpid(), signal.SIGINT)  # a second one ends the ranks immediately
