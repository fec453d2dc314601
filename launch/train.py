"""The verbs ``train`` and ``demo``: compose → check → model and data ready → freeze → launch → wait."""

import argparse
import time
from functools import partial
from typing import Callable, List, Optional, Tuple

from ftdist.batching import BatchPlan
from ftdist.config import LaunchKind, RunConfig
from ftdist.data.cache import data_folder, read_meta
from ftdist.errors import EXIT_DONE, ConfigError
from ftdist.rundir import RunDir
from ftdist.zero.settings import deepspeed_settings

from . import banner, check, compose, ready, sbatch, start, torchrun, trials, verify
from .freeze import freeze
from .machine import visible_gpus

DEMO_ROWS, DEMO_MICRO_BATCH = 4, 2  # as in conf/experiment/demo.yaml: rows of a step, at least, and of a rank's forward


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    compose.add_arguments(parser, sweep=True)
    parser.add_argument("--dry-run", action="store_true", help="write the run directory and print the command")


add_demo_arguments = add_train_arguments


def demo(args: argparse.Namespace) -> int:
    """``train`` with the demo's experiment first: two ranks on CPU, every GPU where there are any."""
    args.overrides = ["experiment=demo", *_demo_on_gpus(len(visible_gpus())), *args.overrides]
    if args.cfg or args.info or args.dry_run or args.multirun or torchrun.is_parent():
        return train(args)
    return run_one(compose.compose(args), verified=True)


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
        if torchrun.is_first():
            compose.show(args)
        return EXIT_DONE
    if torchrun.is_parent():
        if args.dry_run or args.multirun:
            flag = "--dry-run" if args.dry_run else "--multirun"
            raise ConfigError(f"{flag} under torchrun", "one process", f"ftdist train {flag} …, without torchrun")
        return torchrun.join(args, make_ready)
    if args.multirun:
        return trials.start_sweep(args, make_ready)
    return run_one(compose.compose(args), args.dry_run)


def make_ready(config: RunConfig, ranks: Optional[Tuple[int, int]] = None, shown: bool = True,
               verified: bool = False) -> Callable[[], RunDir]:  # fmt: skip
    """Everything before ranks: check, model, data, and what is ``shown`` of them. ``verified``: the config is checked
    on ranks of this machine first.

    Returns:
        What writes the run directory, and shows the run: whatever is wrong was said before.
    """
    plan = check.resolve(config, ranks)
    check.check_run_dir(config)
    deepspeed_settings(config, plan)
    data_folder(config)  # a file or template that is missing is named before anything else is said
    if config.launch.kind is LaunchKind.slurm:  # model and data are made ready by the job
        script = sbatch.render(config)
        check.check_disk(config)
        return partial(_write, config, plan, shown, script)
    if shown:
        banner.show_machine()
    ready.make_model_ready(config)
    check.check_disk(config)
    if verified:
        verify.verify_quickly(config)
    folder = ready.make_data_ready(config)
    check.check_length(config, read_meta(folder)["sets"]["train"]["rows"])
    return partial(_write, config, plan, shown)


def _write(config: RunConfig, plan: BatchPlan, shown: bool, script: str = "") -> RunDir:
    run = freeze(config, plan)
    if script:
        run.submit.write_text(script, encoding="utf-8")
    if shown:
        banner.show_run(config, plan, data_folder(config))
    return run


def run_one(config: RunConfig, dry_run: bool = False, verified: bool = False) -> int:
    """One run, from its config to its end."""
    started = time.monotonic()
    run = make_ready(config, verified=verified)()
    if dry_run:
        print(start.dry_run(config, run))
        return EXIT_DONE
    code = start.start_run(config, run)
    banner.show_next(run, code, time.monotonic() - started)
    return code
