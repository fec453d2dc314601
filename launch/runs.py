"""The verbs that start from a run directory: ``resume status eval export chat``."""

import argparse
import tempfile
import time
from pathlib import Path
from typing import List, Mapping, Optional

from rich.console import Console

from ftdist.batching import plan_resumed
from ftdist.config import LaunchConfig, LaunchKind, RunConfig, dump_config, load_config
from ftdist.errors import EXIT_DONE, ConfigError
from ftdist.nearest import near_paths
from ftdist.resumable import EVALUATED, check_changes
from ftdist.rundir import RunDir, checkpoint_step, refuse_sweep
from ftdist.tables import plain_table, show_table

from . import banner, check, compose, freeze, local, ready, sbatch, slurm, start, torchrun, trials
from .alive import ALIVE, jobs_of, liveness, shown_state
from .plan import plan_local
from .sweeps import SweepDir
from .train import make_ready


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
        return trials.resume_sweep(Path(args.run_dir), make_ready)
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
    if state in ALIVE and not torchrun.is_parent():
        raise ConfigError(f"{args.run_dir} is {state}", "a run that has stopped", "ftdist status shows where it stands")
    if torchrun.is_parent():
        if args.overrides:
            raise ConfigError(f"'{args.overrides[0]}' under torchrun, where each rank would write it",
                              "one process", "ftdist resume RUN_DIR …, without torchrun")  # fmt: skip
        return torchrun.resume(config, run)
    banner.show_resume(run)
    if args.overrides:
        config = change_course(run, config, args.overrides)
    if config.launch.kind is not LaunchKind.slurm:
        check.resolve_ranks(config)
        ready.make_model_ready(config)
        ready.make_data_ready(config)
    code = start.start_run(config, run)
    banner.show_next(run, code, time.monotonic() - started)
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
    """Print a table of runs.

    Raises:
        ConfigError: there is none at one of the places; the others are shown before.
    """
    places = [Path(place) for place in args.run_dirs] or [Path("runs")]
    found = {place: find_runs(place) for place in places}
    runs = [run for place in places for run in found[place]]
    if runs:
        _show_table(runs)
    if empty := [place for place in places if not found[place]]:
        near = [f"ftdist status {other}" for place in empty for other in near_paths(str(place)) if not place.exists()]
        raise ConfigError(f"no run in {', '.join(map(str, empty))}", "a run directory, or a folder of them",
                          " or ".join(near) or "ftdist demo makes a first one")  # fmt: skip
    return EXIT_DONE


def _show_table(runs: List[RunDir]) -> None:
    table = plain_table("run", "state", "step", "loss", "tokens/s", "checkpoint", texts=2)
    jobs = jobs_of([run.read_status() for run in runs])
    for run in runs:
        table.add_row(*map(banner.cell, status_row(run, jobs)))
    show_table(Console(highlight=False), table)


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
    state = shown_state(found, jobs)
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
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="OVERRIDE", help="e.g. data.heldout.mine.path=test.jsonl"
    )
    parser.add_argument("--checkpoint", metavar="CHECKPOINT", default="last", help="last (default), best or a step")


def eval(args: argparse.Namespace) -> int:
    """Held-out losses of a checkpoint, on the run's own held-out data or on other."""
    run = RunDir.open(args.run_dir)
    run = RunDir(run.path.resolve())
    check_changes(args.overrides, "eval", EVALUATED)
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
    parser.add_argument("--max-tokens", type=int, default=256, help="longest answer (default 256)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 (default) always takes the likeliest token")


def chat(args: argparse.Namespace) -> int:
    """Talk to an exported model.

    Raises:
        ConfigError: no model is there, or no answer could be that long or that warm.
    """
    for flag, value, least in (("--max-tokens", args.max_tokens, 1), ("--temperature", args.temperature, 0)):
        if not value >= least:
            raise ConfigError(f"{flag} {value}", f"at least {least}", f"{flag} {least}")
    run = RunDir(args.path)
    trust = run.config.is_file() and load_config(run.config).model.trust_remote_code
    how = [f"--max-tokens={args.max_tokens}", f"--temperature={args.temperature}", *["--trust-remote-code"] * trust]
    ready.run_step(["ftdist.train.chat", str(_model_folder(args.path)), *how])
    return EXIT_DONE


def _model_folder(given: str) -> Path:
    """The export of a run, or a folder that is a model.

    Raises:
        ConfigError: there is none; says what there is instead.
    """
    path, expected = Path(given), "a run directory with an export, or a Hugging Face model folder"
    run = next((RunDir(place) for place in (path, *path.parents) if (place / "run.yaml").is_file()), None)
    model = run.export if run and run.path == path else path
    if (model / "config.json").is_file():
        return model
    if run is None:
        refuse_sweep(path)
        near = " or ".join(f"ftdist chat {place}" for place in near_paths(given) if not path.exists())
        found = "holds no config.json" if path.is_dir() else "does not exist"
        raise ConfigError(f"{given} {found}", expected, near or "ftdist status lists the runs in ./runs")
    steps = [str(checkpoint_step(checkpoint)) for checkpoint in run.published_checkpoints()]
    holds = [*["an export"] * run.export.is_dir(), *[f"checkpoints of step {', '.join(steps)}"] * bool(steps)]
    found = "has no export" if path == run.path else "is not a model" if path.exists() else "does not exist"
    fix = "chat" if run.export.is_dir() else "export" if steps else "resume"
    raise ConfigError(f"{given} {found}; the run holds {' and '.join(holds) or 'no checkpoint yet'}", expected,
                      f"ftdist {fix} {run.path}")  # fmt: skip
