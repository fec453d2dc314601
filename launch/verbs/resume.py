"""The verbs that start from a run directory: ``resume status eval export chat``."""

import argparse
import time
from pathlib import Path
from typing import List

from ftdist.base.errors import ConfigError
from ftdist.config.resumable import check_changes
from ftdist.config.schema import LaunchKind, RunConfig, load_config
from ftdist.launch.backends import registry
from ftdist.launch.backends.slurm import script
from ftdist.launch.config import compose
from ftdist.launch.runs import banner, freeze, ready, resolve
from ftdist.launch.runs.liveness import ALIVE, liveness
from ftdist.launch.sweeps import sweep
from ftdist.launch.sweeps.folder import SweepDir
from ftdist.launch.verbs import under_torchrun
from ftdist.plan.batch import plan_resumed
from ftdist.plan.layout import layout_of
from ftdist.run.rundir import RunDir


def add_resume_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", metavar="RUN_DIR|SWEEP_DIR", help="a run or a sweep")
    parser.add_argument("overrides", nargs="*", default=[], metavar="OVERRIDE",
                        help="how it goes on: launch.nproc_per_node=2, zero.stage=1 …")  # fmt: skip


def resume(args: argparse.Namespace) -> int:
    """Go on with a run as it was frozen; only how it is computed may change, never what. Of a sweep, with what is not
    finished of it."""
    started = time.monotonic()
    check_changes(args.overrides)
    if SweepDir(args.run_dir).exists:
        if args.overrides:
            raise ConfigError(f"'{args.overrides[0]}' with a sweep", "a sweep as it was asked for",
                              "leave it out, or resume one trial: ftdist resume SWEEP_DIR/000 …")  # fmt: skip
        return sweep.resume_sweep(Path(args.run_dir))
    run = RunDir.open(args.run_dir)
    run = RunDir(run.path.resolve())
    config = load_config(run.config)
    state = liveness(run.read_status())
    if state == "done":
        raise ConfigError(
            f"{args.run_dir} is done",
            "a run that has stopped before its end",
            f"to train longer, a new run: ftdist train … model=folder model.path={args.run_dir}/export",
        )
    if state in ALIVE and not under_torchrun.is_parent():
        raise ConfigError(f"{args.run_dir} is {state}", "a run that has stopped", "ftdist status shows where it stands")
    if under_torchrun.is_parent():
        if args.overrides:
            raise ConfigError(f"'{args.overrides[0]}' under torchrun, where each rank would write it",
                              "one process", "ftdist resume RUN_DIR …, without torchrun")  # fmt: skip
        return under_torchrun.resume(config, run)
    banner.show_resume(run)
    if args.overrides:
        config = change_course(run, config, args.overrides)
    else:
        freeze.confirm_settings(run, config)
    if config.launch.kind is not LaunchKind.slurm:
        resolve.resolve_ranks(config)
        ready.make_model_ready(config)
        ready.make_data_ready(config)
    code = registry.start_run(config, run)
    banner.show_next(run, code, time.monotonic() - started)
    return code


def change_course(run: RunDir, config: RunConfig, overrides: List[str]) -> RunConfig:
    """The config with ``overrides``, written into the run directory. What was before is kept beside it."""
    changed = compose.change(config, overrides)
    changed.run_dir = str(run.path)  # it may have been moved
    keys = [override.split("=")[0] for override in overrides]
    if "launch.nproc_per_node" in keys and "launch.threads_per_rank" not in keys:
        changed.launch.threads_per_rank = None  # as many as there are cores for
    resolve.resolve_ranks(changed)
    plan = plan_resumed(changed.batch, layout_of(changed).data, changed.data.max_seq_len)
    changed.batch.grad_accum_steps = plan.grad_accum_steps
    text = script.render(changed) if changed.launch.kind is LaunchKind.slurm else None
    freeze.freeze_again(run, changed, plan, overrides)
    if text is not None:
        run.submit.write_text(text, encoding="utf-8")
    print(f"{'batch':10} {plan.describe()}")
    return changed
