"""The verbs ``train`` and ``demo``: compose → check → model and data ready → freeze → launch → wait."""

import argparse
import json
import time
from pathlib import Path
from typing import List, Optional, Tuple

from ftdist.config import LaunchKind, RunConfig
from ftdist.data.cache import data_folder, read_meta
from ftdist.errors import EXIT_DONE, EXIT_PREEMPTED, ConfigError, FtdistError
from ftdist.rundir import RunDir
from ftdist.zero.settings import deepspeed_settings

from . import banner, check, compose, ready, sbatch, start, torchrun
from .freeze import freeze
from .machine import visible_gpus
from .sweeps import INDEX

DEMO_ROWS, DEMO_MICRO_BATCH = 4, 2  # as in conf/experiment/demo.yaml: rows of a step, at least, and of a rank's forward


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    compose.add_arguments(parser, sweep=True)
    parser.add_argument("--dry-run", action="store_true", help="write the run directory and print the command")


add_demo_arguments = add_train_arguments


def demo(args: argparse.Namespace) -> int:
    """``train`` with the demo's experiment first: two ranks on CPU, every GPU where there are any."""
    args.overrides = ["experiment=demo", *_demo_on_gpus(len(visible_gpus())), *args.overrides]
    return train(args)


def _demo_on_gpus(gpus: int) -> List[str]:
    rows = DEMO_MICRO_BATCH * gpus  # of one forward of all ranks
    accum = -(-DEMO_ROWS // rows) if gpus else 0
    return [f"launch.nproc_per_node={gpus}", f"batch.global_batch_size={accum * rows}"] if gpus else []


def train(args: argparse.Namespace) -> int:
    """Run from a config. Returns the exit code."""
    if args.cfg or args.info:
        if args.multirun:
            raise ConfigError("--multirun with --cfg or --info", "the config of one run",
                              "leave out -m, and give each key one value")  # fmt: skip
        compose.show(args)
        return EXIT_DONE
    if torchrun.is_parent():
        if args.dry_run or args.multirun:
            flag = "--dry-run" if args.dry_run else "--multirun"
            raise ConfigError(f"{flag} under torchrun", "one process", f"ftdist train {flag} …, without torchrun")
        return torchrun.join(args, make_ready)
    if args.multirun:
        return sweep(args)
    return run_one(compose.compose(args), args.dry_run)


def make_ready(config: RunConfig, ranks: Optional[Tuple[int, int]] = None) -> RunDir:
    """Everything before ranks: check, model, data, run directory, banner. What is wrong is said before it is made."""
    plan = check.resolve(config, ranks)
    check.check_run_dir(config)
    deepspeed_settings(config, plan)
    data_folder(config)  # a file or template that is missing is named before anything else is said
    if config.launch.kind is LaunchKind.slurm:  # model and data are made ready by the job
        script = sbatch.render(config)
        check.check_disk(config)
        run = freeze(config, plan)
        run.submit.write_text(script, encoding="utf-8")
        banner.show_run(config, plan, data_folder(config))
        return run
    banner.show_machine()
    ready.make_model_ready(config)
    check.check_disk(config)
    folder = ready.make_data_ready(config)
    check.check_length(config, read_meta(folder)["sets"]["train"]["rows"])
    run = freeze(config, plan)
    banner.show_run(config, plan, folder)
    return run


def run_one(config: RunConfig, dry_run: bool = False) -> int:
    """One run, from its config to its end."""
    run = make_ready(config)
    if dry_run:
        print(start.dry_run(config, run))
        return EXIT_DONE
    code = start.start_run(config, run)
    banner.show_next(run, code)
    return code


def sweep(args: argparse.Namespace) -> int:
    """One run for each combination, one after the other; all are composed and checked before the first starts."""
    jobs = compose.compose_sweep(args)
    first = jobs[0][1]
    if first.run_dir is not None:
        raise ConfigError("run_dir with --multirun", "one directory for each run of the sweep", "runs_dir=FOLDER")
    folder = Path(first.runs_dir).expanduser().absolute() / f"{time.strftime('%Y%m%d-%H%M%S')}-{first.name}-sweep"
    for number, (_, config) in enumerate(jobs):
        config.run_dir = str(folder / f"{number:03d}")
        config.track.group = config.track.group or folder.name
        check.resolve(config)
    print(f"{len(jobs)} runs in {folder}")
    codes = []
    for overrides, config in jobs:
        print(f"\n{config.run_dir}: {' '.join(overrides)}")
        codes.append(_run_job(config, args.dry_run))
        _append_index(folder, overrides, config, codes[-1])
        if codes[-1] == EXIT_PREEMPTED:
            break
    return next((code for code in codes if code), EXIT_DONE)


def _run_job(config: RunConfig, dry_run: bool) -> int:
    try:
        return run_one(config, dry_run)
    except FtdistError as error:  # the other runs of a sweep can still be worth something
        if str(error):  # a step that failed has said why
            print(f"error: {error}")
        return error.exit_code


def _append_index(folder: Path, overrides: List[str], config: RunConfig, code: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / INDEX).open("a", encoding="utf-8") as index:
        index.write(json.dumps({"overrides": overrides, "run_dir": config.run_dir, "exit_code": code}) + "\n")
