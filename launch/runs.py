"""The verbs that start from a run directory: ``resume status eval export chat``."""

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import List, Mapping, Optional

from rich.console import Console
from rich.table import Table

from ftdist.batching import plan_resumed
from ftdist.config import LaunchConfig, LaunchKind, RunConfig, dump_config, load_config
from ftdist.errors import EXIT_DONE, ConfigError
from ftdist.resumable import check_changes
from ftdist.rundir import RunDir

from . import banner, check, compose, freeze, local, ready, sbatch, slurm, start, torchrun
from .alive import ALIVE, jobs_of, liveness
from .plan import plan_local


def add_resume_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", metavar="RUN_DIR")
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE",
                        help="how it goes on: launch.nproc_per_node=2, zero.stage=1 …")  # fmt: skip


def resume(args: argparse.Namespace) -> int:
    """Go on with a run as it was frozen; only how it is computed may change, never what."""
    check_changes(args.overrides)
    run = RunDir.open(args.run_dir)
    run = RunDir(run.path.resolve())
    config = load_config(run.config)
    state = liveness(run.read_status())
    if state == "done":
        raise ConfigError(
            f"{args.run_dir} is done", "a run that has stopped before its end", "start a new one to train longer"
        )
    if state in ALIVE and not torchrun.is_parent():
        raise ConfigError(f"{args.run_dir} is {state}", "a run that has stopped", "ftdist status shows where it stands")
    if torchrun.is_parent():
        if args.overrides:
            raise ConfigError(f"'{args.overrides[0]}' under torchrun, where each rank would write it",
                              "one process", "ftdist resume RUN_DIR …, without torchrun")  # fmt: skip
        run.preempt.unlink(missing_ok=True)
        torchrun.become_rank(config, [str(run.path), "--attempt", str(local.next_attempt(run))])
    if args.overrides:
        config = change_course(run, config, args.overrides)
    if config.launch.kind is not LaunchKind.slurm:
        check.resolve_ranks(config)
        ready.make_model_ready(config)
        ready.make_data_ready(config)
    code = start.start_run(config, run)
    banner.show_next(run, code)
    return code


def change_course(run: RunDir, config: RunConfig, overrides: List[str]) -> RunConfig:
    """The config with ``overrides``, written into the run directory. What was before is kept beside it."""
    changed = compose.change(config, overrides)
    changed.run_dir = str(run.path)  # it may have been moved
    keys = [override.split("=")[0] for override in overrides]
    if "launch.nproc_per_node" in keys and "launch.threads_per_rank" not in keys:
        changed.launch.threads_per_rank = None  # as many as there are cores for
    check.resolve_ranks(changed)
    plan = plan_resumed(changed.batch, check.world_size(changed), changed.data.max_seq_len)
    changed.batch.grad_accum_steps = plan.grad_accum_steps
    script = sbatch.render(changed) if changed.launch.kind is LaunchKind.slurm else None
    freeze.freeze_again(run, changed, plan, overrides)
    if script is not None:
        run.submit.write_text(script, encoding="utf-8")
    print(f"{'batch':10} {plan.describe()}")
    return changed


def add_status_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dirs", nargs="*", metavar="RUN_DIR", help="default: the runs in ./runs")


def status(args: argparse.Namespace) -> int:
    """Print a table of runs."""
    places = [Path(place) for place in args.run_dirs] or [Path("runs")]
    runs = [run for place in places for run in find_runs(place)]
    if not runs:
        raise ConfigError(
            f"no run in {', '.join(map(str, places))}", "a run directory, or a folder of them", "ftdist demo"
        )
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("run", "state", "step", "loss", "tokens/s", "checkpoint"):
        table.add_column(column, justify="left" if column in ("run", "state") else "right")
    jobs = jobs_of([run.read_status() for run in runs])
    for run in runs:
        table.add_row(*status_row(run, jobs))
    Console(highlight=False, width=None if os.isatty(1) else 200).print(table)
    return EXIT_DONE


def find_runs(place: Path) -> List[RunDir]:
    """The run at a place, or the runs and sweeps' runs in the folder, oldest first."""
    if (place / "run.yaml").is_file():
        return [RunDir(place)]
    return [RunDir(config.parent) for depth in ("*", "*-sweep/*") for config in sorted(place.glob(f"{depth}/run.yaml"))]


def status_row(run: RunDir, jobs: Optional[Mapping[str, slurm.Job]] = None) -> List[str]:
    """One line of the table: run, state, step, loss, tokens/s, age of the newest checkpoint."""
    found = run.read_status()
    age = found.get("last_checkpoint_time")
    loss, speed = found.get("loss"), found.get("tokens_per_s")
    state = liveness(found, jobs)
    reason = found.get("exit_reason") if state in ("failed", "preempted") else None
    if state in ALIVE and (job := (jobs or {}).get(str(found.get("job_id")))):
        reason = job.describe()
    return [
        banner.shown(run.path),
        state + (f": {str(reason)[:70]}" if reason else ""),
        f"{found.get('step', 0)}/{found.get('max_steps', '?')}",
        "-" if loss is None else f"{loss:.4f}",
        "-" if speed is None else f"{speed:,.0f}",
        "-" if age is None else f"step {found.get('last_checkpoint_step')}, {_span(time.time() - age)} ago",
    ]


def _span(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def add_eval_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", metavar="RUN_DIR")
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="e.g. data.heldout.mine.path=test.jsonl")
    parser.add_argument("--checkpoint", metavar="CHECKPOINT", default="last", help="last (default), best or a step")


def eval(args: argparse.Namespace) -> int:
    """Held-out losses of a checkpoint, on the run's own held-out data or on other."""
    run = RunDir.open(args.run_dir)
    run = RunDir(run.path.resolve())
    run.find_checkpoint(args.checkpoint)
    config = load_config(run.config)
    if args.overrides:
        config = compose.change(config, args.overrides)
    check.resolve_paths(config)
    if config.launch.kind is not LaunchKind.local:  # it was trained elsewhere, and is evaluated here
        config.launch = LaunchConfig(timeout_s=config.launch.timeout_s)
    check.resolve_ranks(config)
    ready.make_model_ready(config)
    ready.make_data_ready(config)
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "run.yaml"
        file.write_text(dump_config(config), encoding="utf-8")
        return _evaluate(config, run, ["--checkpoint", args.checkpoint, "--config", str(file)])


def _evaluate(config: RunConfig, run: RunDir, arguments: List[str]) -> int:
    attempt = local.next_attempt(run)  # no attempt of the run has this number yet
    local.clear_errors(run, attempt)
    log = run.logs / "eval.log"
    log.unlink(missing_ok=True)
    arguments = [str(run.path), *arguments, "--attempt", str(attempt)]
    code = local.start(plan_local(config, "ftdist.train.eval_main", arguments), log)
    if code:
        raise local.explain_failure(run, attempt, log, code)
    return EXIT_DONE


def add_export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", metavar="RUN_DIR")
    parser.add_argument("--checkpoint", metavar="CHECKPOINT", default="last", help="last (default), best or a step")
    parser.add_argument("--out", metavar="DIR", help="default RUN_DIR/export")


def export(args: argparse.Namespace) -> int:
    """Write a checkpoint in Hugging Face format."""
    run = RunDir.open(args.run_dir)
    run.find_checkpoint(args.checkpoint)
    out = ["--out", args.out] if args.out else []
    ready.run_step(["ftdist.zero.export", str(run.path), "--checkpoint", args.checkpoint, *out])
    return EXIT_DONE


def add_chat_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="RUN_DIR|MODEL", help="a run or a model folder")


def chat(args: argparse.Namespace) -> int:
    """Talk to an exported model."""
    run = RunDir(args.path)
    if run.config.is_file() and not run.export.is_dir():
        raise ConfigError(f"{args.path} has no export", "an exported model", f"ftdist export {args.path}")
    ready.run_step(["ftdist.train.chat", str(run.export) if run.config.is_file() else args.path])
    return EXIT_DONE
