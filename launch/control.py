"""The verbs ``logs`` and ``cancel``, for a run wherever it was started."""

import argparse
import contextlib
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, Dict, Optional

import psutil

from ftdist.config import load_config
from ftdist.errors import EXIT_DONE, ConfigError
from ftdist.rundir import RunDir

from . import slurm
from .alive import ALIVE, jobs_of, liveness
from .stop import ask_to_stop, stop_sweep
from .sweeps import SweepDir

POLL_S = 0.5


def add_logs_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", metavar="RUN_DIR")
    parser.add_argument("--rank", type=int, help="the log of one rank; default what the run as a whole printed")
    parser.add_argument("--follow", "-f", action="store_true", help="go on until the run ends")


def logs(args: argparse.Namespace) -> int:
    """Print the newest log of a run or of one of its ranks."""
    run = RunDir.open(args.run_dir)
    path = newest_log(run, args.rank)
    launch = load_config(run.config).launch
    is_one = (args.rank or 0) < (launch.nproc_per_node or 1) * launch.nnodes
    if path is None and not (args.follow and is_one and liveness(run.read_status()) in ALIVE):
        what = "log" if args.rank is None else f"log of rank {args.rank}"
        ranks = sorted({int(log.name[5:10]) for log in run.logs.glob("rank-*.log")})
        expected = f"--rank with one of {', '.join(map(str, ranks))}" if ranks else "a run that has started"
        raise ConfigError(f"{args.run_dir} has no {what}", expected, f"ftdist status {args.run_dir}")
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        _print(run, args.rank, args.follow)
    return EXIT_DONE


def newest_log(run: RunDir, rank: Optional[int]) -> Optional[Path]:
    """The log of the newest attempt: of the Slurm job, else of rank 0."""
    status = run.read_status()
    if rank is None and status.get("job_id"):
        path = run.job_log(str(status["job_id"]))
        return path if path.is_file() else None
    found = list(run.logs.glob(f"rank-{rank or 0:05d}.attempt-*.log"))
    return max(found, key=lambda path: int(path.stem.rsplit("-", 1)[1]), default=None)


def _print(run: RunDir, rank: Optional[int], follow_it: bool) -> None:
    shown: Optional[Path] = None
    offset = 0
    while True:
        alive = liveness(run.read_status()) in ALIVE  # asked first, so that the last lines are read after the end
        path = newest_log(run, rank)
        if path is not None:
            offset = offset if path == shown else 0
            shown = path
            with path.open("rb") as file:
                file.seek(offset)
                text = file.read()
            offset += len(text)
            sys.stdout.buffer.write(text)
            sys.stdout.flush()
        if not follow_it or not alive:
            return
        time.sleep(POLL_S)


def add_cancel_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", metavar="RUN_DIR|SWEEP_DIR", help="a run or a sweep")
    parser.add_argument("--now", action="store_true", help="do not wait for a checkpoint")


def cancel(args: argparse.Namespace) -> int:
    """Stop a run or a sweep: by default it saves and can be resumed."""
    sweep = SweepDir(args.run_dir)
    if sweep.exists:
        return _cancel_sweep(sweep, args.now)
    run = RunDir.open(args.run_dir)
    status = run.read_status()
    state = liveness(status)
    if state not in ALIVE:
        raise ConfigError(f"{args.run_dir} is {state}", "a run that is under way", "ftdist status lists the runs")
    if not args.now:
        print(ask_to_stop(run))
        return EXIT_DONE
    run.cancel.touch()
    if status.get("job_id"):
        slurm.cancel(str(status["job_id"]))
        print(f"job {status['job_id']} is cancelled")
    else:
        _end_here(run, status)
        print("ended")
    return EXIT_DONE


def _cancel_sweep(sweep: SweepDir, now: bool) -> int:
    jobs = jobs_of([trial.run.read_status() for trial in sweep.trials()])
    alive = [trial.run for trial in sweep.trials() if liveness(trial.run.read_status(), jobs) in ALIVE]
    here = liveness(sweep.read_status()) in ALIVE
    if not alive and not here:
        raise ConfigError(f"no trial of {sweep.path} is under way", "a sweep that runs", f"ftdist sweep {sweep.path}")
    print(stop_sweep(sweep))
    if now:
        ids = [str(status["job_id"]) for run in alive if (status := run.read_status()).get("job_id")]
        if ids:
            slurm.cancel(*ids)
        elif here:
            _end_here(sweep, sweep.read_status())
    return EXIT_DONE


def _end_here(run: RunDir, status: Dict[str, Any]) -> None:
    if status.get("host") != os.uname().nodename:
        raise ConfigError(f"{run.path} runs on {status.get('host')}", "the machine that it was started on",
                          f"ssh {status.get('host')} ftdist cancel --now {run.path}")  # fmt: skip
    launcher = psutil.Process(int(status["pid"]))
    with contextlib.suppress(psutil.NoSuchProcess, psutil.TimeoutExpired):
        for _ in range(2):  # as Ctrl-C twice
            launcher.send_signal(signal.SIGINT)
            time.sleep(0.3)
        launcher.wait(timeout=30)
