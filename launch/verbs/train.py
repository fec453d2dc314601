"""The verbs ``train`` and ``demo``: compose a config, and run it."""

import argparse
from typing import List

from ftdist.base.errors import EXIT_DONE, ConfigError
from ftdist.base.process import end_with
from ftdist.launch.attempt.agent import sweep_agent
from ftdist.launch.attempt.machine import visible_gpus
from ftdist.launch.config import compose
from ftdist.launch.runs.pipeline import run_from_config
from ftdist.launch.sweeps import sweep
from ftdist.launch.verbs import under_torchrun

DEMO_ROWS, DEMO_MICRO_BATCH = 4, 2
"""The smallest global batch and the micro-batch of the demo, in rows, as in ``conf/experiment/demo.yaml``."""

DEMO_LORA_LR = 1e-3
"""Learning rate of the demo with adapters: ten times that of ``conf/experiment/demo.yaml``, for full fine-tuning."""


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    compose.add_arguments(parser, sweep=True)
    parser.add_argument("--dry-run", action="store_true",
                        help="write the run directory and print the command; with -m: print the trials and their "
                             "batch scripts, and write nothing")  # fmt: skip


add_demo_arguments = add_train_arguments


def demo(args: argparse.Namespace) -> int:
    """Run ``train`` with the demo's experiment: on every GPU, or on two ranks on CPU. Returns the exit code."""
    rate = [f"optim.lr={DEMO_LORA_LR:g}"] if {"method=lora", "method=qlora"} & set(args.overrides) else []
    args.overrides = ["experiment=demo", *_demo_on_gpus(len(visible_gpus())), *rate, *args.overrides]
    if args.cfg or args.info or args.dry_run or args.multirun or under_torchrun.is_rank():
        return train(args)
    return run_from_config(compose.compose(args), verify_first=True)


def _demo_on_gpus(gpus: int) -> List[str]:
    """Return the overrides that put the demo on this machine's GPUs."""
    rows = DEMO_MICRO_BATCH * gpus  # of one micro-step on all ranks
    accum = -(-DEMO_ROWS // rows) if gpus else 0
    return [f"launch.nproc_per_node={gpus}", f"batch.global_batch_size={accum * rows}"] if gpus else []


def train(args: argparse.Namespace) -> int:
    """Compose a config, freeze it, start the ranks and wait for them. Returns the exit code.

    Raises:
        ConfigError: the config or the command line is wrong, or this machine cannot run it.
        LaunchError: the ranks could not be started, or one failed.
    """
    if args.cfg or args.info:
        if args.multirun:
            raise ConfigError("--multirun cannot be used with --cfg or --info", "the config of one run",
                              "leave out -m, and give each key one value")  # fmt: skip
        if under_torchrun.is_first_rank():
            compose.show(args)
        return EXIT_DONE
    if (agent := sweep_agent()) is not None:
        end_with(agent)
    if under_torchrun.is_rank():
        if args.dry_run or args.multirun:
            flag = "--dry-run" if args.dry_run else "--multirun"
            raise ConfigError(f"{flag} cannot be used under torchrun, or under srun with several tasks",
                              "a command that is started once",
                              f"run `ftdist train {flag} …` without torchrun, or with srun --ntasks=1")  # fmt: skip
        return under_torchrun.train(args)
    if args.multirun:
        return sweep.start_sweep(args)
    return run_from_config(compose.compose(args), args.dry_run)
