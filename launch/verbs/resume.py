"""The verb ``resume``: continue a run or a sweep that has stopped."""

import argparse
import contextlib
import math
import time
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from ftdist.base.counts import count
from ftdist.base.errors import EXIT_DONE, CheckpointError, ConfigError, LaunchError
from ftdist.base.output import quoted_path, short_path
from ftdist.base.shell import shell_words
from ftdist.config.frozen import load_config
from ftdist.config.optim import BLOCKS_CANNOT_BE_CUT, OptimizerKind
from ftdist.config.resumable import check_changes
from ftdist.config.schema import RunConfig
from ftdist.launch.attempt import lifecycle
from ftdist.launch.backends.base import ALIVE, Status
from ftdist.launch.backends.registry import backend_of, backend_of_status
from ftdist.launch.backends.slurm.ownership import owned
from ftdist.launch.config import compose
from ftdist.launch.runs import banner, freeze, inputs, resolve
from ftdist.launch.runs.liveness import liveness
from ftdist.launch.sweeps import sweep
from ftdist.launch.sweeps.folder import SweepDir
from ftdist.launch.verbs import under_torchrun
from ftdist.plan.batch import BatchPlan, plan_resumed
from ftdist.plan.layout import layout_of
from ftdist.run.adapters import to_train_longer
from ftdist.run.identity import check_files
from ftdist.run.rundir import PAUSED, RunDir, read_manifest
from ftdist.run.timeline import PREPARING


def add_resume_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", metavar="RUN_DIR|SWEEP_DIR", help="a run or a sweep")
    parser.add_argument("overrides", nargs="*", default=[], metavar="OVERRIDE",
                        help="settings to change for the rest of the run, for example zero.stage=1")  # fmt: skip
    parser.add_argument("--dry-run", action="store_true",
                        help="print what would be started (a batch script under Slurm), change nothing")  # fmt: skip


def resume(args: argparse.Namespace) -> int:
    """Resume a run with its frozen config, or resume the unfinished trials of a sweep.

    Overrides may change how a run is computed, never what is computed.

    Returns:
        The exit code. 0 if the run or sweep is finished already, so that a loop such as
        ``until ftdist resume RUN_DIR; do sleep 60; done`` ends.

    Raises:
        ConfigError: the run is under way, or an override may not be changed.
        LaunchError: the run could not be started, or it failed.
    """
    started = time.monotonic()
    check_changes(args.overrides)
    if SweepDir(args.run_dir).exists:
        return _resume_sweep(args)
    run = RunDir(RunDir.open(args.run_dir).path.resolve())
    config = load_config(run.config)
    state = liveness(run.read_status())
    if state == "done":
        if under_torchrun.is_first_rank():
            reason = run.read_status().get("exit_reason")
            done = f"done ({reason})" if reason else "done"
            print(f"{short_path(run.path)} is {done}; to train longer, start a new run: "
                  f"ftdist train … {to_train_longer(config, short_path(run.path))}")  # fmt: skip
        return EXIT_DONE
    if under_torchrun.is_rank():
        if args.dry_run:
            raise ConfigError("--dry-run cannot be used with torchrun, or under srun with several tasks",
                              "a command that is started once",
                              "run `ftdist resume --dry-run …` without torchrun, or with srun --ntasks=1")  # fmt: skip
        if args.overrides:
            raise ConfigError(f"overrides ('{args.overrides[0]}') cannot be used under torchrun, because every rank "
                              "would rewrite run.yaml", "ftdist resume RUN_DIR without overrides",
                              "run `ftdist resume RUN_DIR …` without torchrun")  # fmt: skip
        return under_torchrun.resume(config, run)
    if state in ALIVE:
        raise LaunchError(f"{args.run_dir} is {state}{_who(run.read_status())}", "a run that has stopped",
                          f"wait until it ends, or stop it: ftdist cancel {quoted_path(run.path)}")  # fmt: skip
    if args.dry_run:
        return _dry_run(run, config, args.overrides)
    with owned(run, submits=backend_of(config).uses_scheduler):
        banner.show_resume(run)
        if args.overrides:
            config = change_config(run, config, args.overrides)
        else:
            freeze.confirm_settings(run, config)
        _check_not_paused(run, config)
    banner.show_ignored_variables(config, config.track.wandb)
    backend = backend_of(config)
    if not backend.uses_scheduler:  # a job of a scheduler prepares model and data itself
        run.record_phase(PREPARING, lifecycle.next_attempt(run))
        resolve.resolve_ranks(config)
        check_files(run, config)  # first, because the error of loading the model only says that a file is missing
        inputs.prepare_model(config)
        inputs.prepare_run_data(config, run)
    code = backend.start(config, run)
    banner.show_next(run, code, time.monotonic() - started)
    return code


def _resume_sweep(args: argparse.Namespace) -> int:
    if under_torchrun.is_rank() and SweepDir(args.run_dir).read_status().get("state") != "done":
        raise ConfigError("a sweep cannot be resumed under torchrun, or under srun with several tasks",
                          "a command that is started once",
                          f"without torchrun, or with srun --ntasks=1: ftdist resume {quoted_path(args.run_dir)}",
                          )  # fmt: skip
    quiet = not under_torchrun.is_first_rank()
    return sweep.resume_sweep(Path(args.run_dir), quiet, _sweep_waits(args.overrides), args.dry_run)


def _who(status: Status) -> str:
    """Return the job or process of a run that is under way, as text to append to its state: `` as job 7``."""
    if backend_of_status(status).uses_scheduler:
        return f" as job {status.get('job_id')}"
    return f", started by process {status['pid']} on {status.get('host')}" if status.get("pid") else ""


def _check_not_paused(run: RunDir, config: RunConfig) -> None:
    """Check that a trial of a sweep would not pause again where it is.

    Raises:
        ConfigError: the trial would pause again.
    """
    status = run.read_status()
    if status.get("state") == PAUSED and status.get("step") in config.sweep.rungs:
        raise ConfigError(f"{run.path} paused at rung {status['step']} of its sweep, and other trials were chosen to "
                          "continue", "a trial that was chosen",
                          f"to train it to its end: ftdist resume {quoted_path(run.path)} sweep.rungs=[]")  # fmt: skip


def _sweep_waits(overrides: List[str]) -> Optional[bool]:
    """Return the new value of ``launch.wait`` for the rest of a sweep. None if it does not change.

    Raises:
        ConfigError: another setting is changed, which would make the trials incomparable.
    """
    wait: Optional[bool] = None
    for word in overrides:
        key, _, value = word.lstrip("+").partition("=")
        if key != "launch.wait" or value.lower() not in ("true", "false"):
            raise ConfigError(f"'{word}' cannot be changed when resuming a sweep",
                              "no override, launch.wait=true or launch.wait=false",
                              f"leave out {word}, or resume one trial: ftdist resume SWEEP_DIR/000 …")  # fmt: skip
        wait = value.lower() == "true"
    return wait


def _dry_run(run: RunDir, config: RunConfig, overrides: List[str]) -> int:
    """Print what a resume would start, and change nothing. Returns the exit code.

    Raises:
        ConfigError: the run cannot be resumed with these overrides.
    """
    banner.show_resume(run)
    if overrides:
        config, plan = _changed(run, config, overrides)
        print(f"{'batch':10} {plan.describe()}")
    _check_not_paused(run, config)
    print(backend_of(config).dry_run(config, run, changed=bool(overrides)))
    command = shell_words(["ftdist", "resume", short_path(run.path), *overrides])
    print(f"nothing was changed or started; resume it with: {command}")
    return EXIT_DONE


def change_config(run: RunDir, config: RunConfig, overrides: List[str]) -> RunConfig:
    """Change the config of a run and write it into the run directory. The old config is kept beside it.

    Raises:
        ConfigError: the global batch cannot be divided among the ranks, or the ranks cannot be started.
    """
    changed, plan = _changed(run, config, overrides)
    freeze.freeze_again(run, changed, plan, overrides, backend_of(changed).files(changed))
    print(f"{'batch':10} {plan.describe()}")
    return changed


def _changed(run: RunDir, config: RunConfig, overrides: List[str]) -> Tuple[RunConfig, BatchPlan]:
    """Return the config with overrides, and its batch plan. Nothing is written."""
    changed = compose.change(config, overrides)
    changed.run_dir = str(run.path)  # the run directory may have been moved
    resolve.resolve_cache(changed)
    keys = [override.split("=")[0] for override in overrides]
    if "launch.nproc_per_node" in keys and "launch.threads_per_rank" not in keys:
        changed.launch.threads_per_rank = None  # is computed again from the number of ranks
    resolve.resolve_ranks(changed)
    plan = plan_resumed(changed.batch, layout_of(changed).data, changed.data.max_seq_len, changed.launch.nnodes)
    changed.batch.grad_accum_steps = plan.grad_accum_steps
    _check_states_fit(run, changed)
    return changed, plan


def _check_states_fit(run: RunDir, config: RunConfig) -> None:
    """Check that the ranks can load optimizer states in 8 bits. With ZeRO, each rank can only load the states that the
    same rank has saved, so the number of ranks and the stage must be the same. The ranks check this too, but only after
    run.yaml was changed.

    Raises:
        ConfigError: the newest checkpoint was saved by another number of ranks, or at another ZeRO stage.
    """
    if config.optim.optimizer is not OptimizerKind.adamw_8bit:
        return
    manifest: Dict[str, Any] = {}
    with contextlib.suppress(CheckpointError):  # damaged: the ranks find an older one
        for newest in run.published_checkpoints()[-1:]:
            manifest = read_manifest(newest)
    ranks, stage = layout_of(config).data, config.zero.stage
    before = manifest.get("world_size", ranks), manifest.get("zero_stage", stage)
    if before == (ranks, stage) or not (stage or before[1]) or not manifest["optimizer_step"]:
        return
    nodes = math.gcd(before[0], config.launch.nnodes)
    words = [f"launch.nnodes={nodes}"] * (nodes != config.launch.nnodes)
    words += [f"launch.nproc_per_node={before[0] // nodes}", f"zero.stage={before[1]}"]
    raise ConfigError(f"{newest.name} was saved by {count(before[0], 'rank')} with zero.stage={before[1]}; the run "
                      f"would continue with {count(ranks, 'rank')} and zero.stage={stage}. {BLOCKS_CANNOT_BE_CUT}",
                      "the number of ranks and the stage that it was saved with", " ".join(words))  # fmt: skip
