"""The verbs ``train`` and ``demo``: compose → check → model and data ready → freeze → launch → wait."""

import argparse
from typing import List

from ftdist.base.errors import EXIT_DONE, ConfigError
from ftdist.launch.attempt.machine import visible_gpus
from ftdist.launch.config import compose
from ftdist.launch.runs.pipeline import run_one
from ftdist.launch.sweeps import sweep
from ftdist.launch.verbs import under_torchrun

DEMO_ROWS, DEMO_MICRO_BATCH = 4, 2  # as in conf/experiment/demo.yaml: rows of a step, at least, and of a rank's forward


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    compose.add_arguments(parser, sweep=True)
    parser.add_argument("--dry-run", action="store_true", help="write the run directory and print the command")


add_demo_arguments = add_train_arguments


def demo(args: argparse.Namespace) -> int:
    """``train`` with the demo's experiment first: two ranks on CPU, every GPU where there are any."""
    args.overrides = ["experiment=demo", *_demo_on_gpus(len(visible_gpus())), *args.overrides]
    if args.cfg or args.info or args.dry_run or args.multirun or under_torchrun.is_parent():
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
        if under_torchrun.is_first():
            compose.show(args)
        return EXIT_DONE
    if under_torchrun.is_parent():
        if args.dry_run or args.multirun:
            flag = "--dry-run" if args.dry_run else "--multirun"
            raise ConfigError(f"{flag} under torchrun", "one process", f"ftdist train {flag} …, without torchrun")
        return under_torchrun.join(args)
    if args.multirun:
        return sweep.start_sweep(args)
    return run_one(compose.compose(args), args.dry_run)
