"""The verb ``cancel``: stop a run or a sweep, wherever it runs."""

import argparse

from ftdist.base.errors import EXIT_DONE, ConfigError
from ftdist.base.output import quoted_path
from ftdist.launch.backends.base import ALIVE
from ftdist.launch.backends.registry import backend_of_status
from ftdist.launch.runs.liveness import liveness, observe
from ftdist.launch.sweeps.folder import SweepDir
from ftdist.launch.sweeps.stop import stop_sweep
from ftdist.run.rundir import RunDir


def add_cancel_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", metavar="RUN_DIR|SWEEP_DIR", help="a run or a sweep")
    parser.add_argument("--now", action="store_true", help="stop immediately, without saving a checkpoint")


def cancel(args: argparse.Namespace) -> int:
    """Stop a run or a sweep. Unless ``--now`` is given, it saves before it ends.

    Raises:
        ConfigError: the run or sweep is not under way, or can only be ended from another machine.
    """
    sweep = SweepDir(args.run_dir)
    if sweep.exists:
        return _cancel_sweep(sweep, args.now)
    run = RunDir.open(args.run_dir)
    status = run.read_status()
    state = liveness(status)
    if state not in ALIVE:
        raise ConfigError(
            f"{args.run_dir} is {state}", "a run that is under way", "run ftdist status, which lists the runs"
        )
    print(backend_of_status(status).stop(run, args.now))
    return EXIT_DONE


def _cancel_sweep(sweep: SweepDir, now: bool) -> int:
    runs = [trial.run for trial in sweep.trials()]
    seen = observe([run.read_status() for run in runs])
    alive = [run for run, found in zip(runs, seen, strict=True) if found.state in ALIVE]
    status = sweep.read_status()
    launcher_alive = liveness(status) in ALIVE
    if not alive and not launcher_alive:
        raise ConfigError(f"no trial of {sweep.path} is under way", "a sweep that is under way",
                          f"run ftdist sweep {quoted_path(sweep.path)} to see its trials")  # fmt: skip
    jobs = any(backend_of_status(run.read_status()).uses_scheduler for run in alive)
    said = stop_sweep(sweep, now)
    if now and launcher_alive and not jobs:  # the trials end with their launcher
        backend_of_status(status).stop(sweep, now=True)
        said = dict.fromkeys(said, "stopped without saving a checkpoint")
    for number, text in said.items():
        print(f"trial {number:03d}: {text}")
    print("no other trial of the sweep starts")
    return EXIT_DONE
