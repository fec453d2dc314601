"""The verb ``cancel``: stop a run or a sweep, wherever it was started."""

import argparse
import contextlib
import os
import signal
import time
from typing import Any, Dict

import psutil

from ftdist.base.errors import EXIT_DONE, ConfigError
from ftdist.launch.backends.slurm import client
from ftdist.launch.runs.liveness import ALIVE, jobs_of, liveness
from ftdist.launch.runs.stop import ask_to_stop
from ftdist.launch.sweeps.folder import SweepDir
from ftdist.launch.sweeps.stop import stop_sweep
from ftdist.run.rundir import RunDir


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
        client.cancel(str(status["job_id"]))
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
            client.cancel(*ids)
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
