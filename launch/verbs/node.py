"""The verb ``node``: one machine's ranks of a run on several machines."""

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


def add_node_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", metavar="RUN_DIR")
    parser.add_argument("--rank", type=int, required=True, help="number of this machine, from 0; 0 leads")
    parser.add_argument("--attempt", type=int, default=0, help="as in the printed command: the same on all machines")
    parser.add_argument("--watch", action="store_true", help="stop when standard input closes")


def node(args: argparse.Namespace) -> int:
    """This machine's ranks of a run on several machines. Returns the exit code."""
    if args.watch:
        threading.Thread(target=_stop_at_end_of_input, daemon=True).start()
    run = RunDir.open(args.run_dir)
    config = load_config(run.config)
    if not 0 <= args.rank < config.launch.nnodes:
        raise ConfigError(f"--rank {args.rank} of {config.launch.nnodes} machines", f"0 to {config.launch.nnodes - 1}")
    return run_node(config, run, args.rank, args.attempt)


def _stop_at_end_of_input() -> None:
    with contextlib.suppress(OSError):
        while os.read(0, 1024):
            pass
    os.kill(os.getpid(), signal.SIGINT)  # twice: at once
    time.sleep(0.2)
    os.kill(os.getpid(), signal.SIGINT)
