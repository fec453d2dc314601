"""The verb ``logs``: print what a run or one of its ranks has printed."""

import argparse
import codecs
import contextlib
import sys
import time
from pathlib import Path
from typing import Optional

from ftdist.base.errors import EXIT_DONE, ConfigError
from ftdist.base.output import quoted_path
from ftdist.config.frozen import load_config
from ftdist.launch.backends.base import ALIVE, Seen, newest_rank_log
from ftdist.launch.backends.registry import backend_of_status
from ftdist.launch.runs.liveness import liveness, observe
from ftdist.plan.layout import Layout
from ftdist.run.rundir import RunDir

POLL_S = 0.5
ASK_S = 3.0
"""Seconds between two queries of Slurm, whose controller serves all users of a cluster."""


def add_logs_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", metavar="RUN_DIR")
    parser.add_argument("--rank", type=int, help="print the log of this rank (default: the output of the whole run)")
    parser.add_argument("--follow", "-f", action="store_true", help="keep printing new output until the run ends")


def logs(args: argparse.Namespace) -> int:
    """Print the newest log of a run or of one of its ranks.

    Raises:
        ConfigError: there is no such log, and the run will not write one.
    """
    run = RunDir.open(args.run_dir)
    path = newest_log(run, args.rank)
    launch = load_config(run.config).launch
    rank_exists = (args.rank or 0) < Layout(launch.nnodes, launch.nproc_per_node or 1).world
    if path is None and not (args.follow and rank_exists and liveness(run.read_status()) in ALIVE):
        what = "log" if args.rank is None else f"log of rank {args.rank}"
        ranks = sorted({int(log.name[5:10]) for log in run.logs.glob("rank-*.log")})
        expected = f"--rank with one of {', '.join(map(str, ranks))}" if ranks else "a run that has started"
        raise ConfigError(f"{args.run_dir} has no {what}", expected, f"ftdist status {quoted_path(args.run_dir)}")
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        _print(run, args.rank, args.follow)
    return EXIT_DONE


def newest_log(run: RunDir, rank: Optional[int]) -> Optional[Path]:
    """Return the log of the newest attempt, of a rank or of the run as a whole. None if there is none yet."""
    return newest_rank_log(run, rank) if rank is not None else backend_of_status(run.read_status()).log(run)


def _print(run: RunDir, rank: Optional[int], follow: bool) -> None:
    shown: Optional[Path] = None
    offset, asked, said = 0, -ASK_S, ""
    seen = Seen("")
    decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a file that grows may end within a character
    while True:
        status = run.read_status()
        if status.get("state") not in ALIVE or time.monotonic() - asked >= ASK_S:
            # before reading, so that nothing printed at the end is missed
            (seen,), asked = observe([status]), time.monotonic()
        path = newest_log(run, rank)
        if path is None and seen.state in ALIVE and seen.detail not in ("", said):
            said = seen.detail
            print(said, file=sys.stderr, flush=True)  # why there is no log yet
        if path is not None:
            offset = offset if path == shown else 0
            shown = path
            with path.open("rb") as file:
                file.seek(offset)
                text = file.read()
            offset += len(text)
            sys.stdout.write(decoder.decode(text))
            sys.stdout.flush()
        if not follow or seen.state not in ALIVE:
            return
        time.sleep(POLL_S)
