"""The verb ``eval``: held-out losses of a checkpoint."""

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import List

from ftdist.base.errors import EXIT_DONE
from ftdist.base.json_files import write_json
from ftdist.config.frozen import dump_config, load_config
from ftdist.config.launch import LaunchConfig
from ftdist.config.resumable import EVALUATED, check_changes
from ftdist.config.schema import RunConfig
from ftdist.launch.attempt import failure, lifecycle, torchrun
from ftdist.launch.attempt.command import plan_local
from ftdist.launch.backends.registry import backend_of
from ftdist.launch.config import compose
from ftdist.launch.runs import inputs, resolve
from ftdist.launch.verbs.eval_model import eval_model, is_model
from ftdist.plan.batch import BatchPlan
from ftdist.plan.deepspeed import deepspeed_settings
from ftdist.plan.layout import layout_of
from ftdist.run.identity import recorded_folder
from ftdist.run.prepared import is_ready
from ftdist.run.rundir import RunDir
from ftdist.run.task_results import task_places


def add_eval_arguments(parser: argparse.ArgumentParser) -> None:
    models = "a run; with --tasks also a model or adapter folder, a .gguf file or org/name"
    parser.add_argument("run_dir", metavar="RUN_DIR|MODEL", help=models)
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="OVERRIDE", help="e.g. data.heldout.mine.path=test.jsonl"
    )
    parser.add_argument("--checkpoint", metavar="CHECKPOINT", default="last", help="last (default), best or a step")
    parser.add_argument("--tasks", metavar="TASKS", help="questions for both models: stdlib_docs, x.jsonl, x.yaml")


def eval(args: argparse.Namespace) -> int:
    """Print the held-out losses of a checkpoint, on this machine: on the run's own held-out data or on other data.

    With ``--tasks``, print instead how many questions the checkpoint and its base model answer correctly. The argument
    may then also be a model that no run has trained.

    Raises:
        ConfigError: there is no such run, checkpoint or task, or an override that ``ftdist eval`` does not take.
        LaunchError: a rank failed.
    """
    if is_model(args.run_dir) and (args.tasks is not None or Path(args.run_dir).exists()):
        return eval_model(args)
    run = RunDir.open(args.run_dir)
    run = RunDir(run.path.resolve())
    tasks = [] if args.tasks is None else ["--tasks", ",".join(task_places(args.tasks).values())]
    if tasks:  # the answers do not depend on the data of the run
        check_changes(args.overrides, "eval --tasks", [key for key in EVALUATED if key != "data"])
    check_changes(args.overrides, "eval", EVALUATED)
    run.find_checkpoint(args.checkpoint)
    config = load_config(run.config)
    if args.overrides:
        config = compose.change(config, args.overrides)
    resolve.resolve_paths(config)
    if not backend_of(config).on_this_machine:  # the launch settings are for other machines
        config.launch = LaunchConfig(timeout_s=config.launch.timeout_s)
    resolve.resolve_ranks(config)
    inputs.prepare_model(config)
    own_data = not any(override.lstrip("+~").startswith("data") for override in args.overrides)
    if not own_data:
        inputs.prepare_data(config)
    elif not is_ready(recorded_folder(run, config)):
        inputs.prepare_run_data(config, run)
    with tempfile.TemporaryDirectory() as scratch:
        frozen = RunDir(scratch)
        frozen.config.write_text(dump_config(config), encoding="utf-8")
        plan = BatchPlan(config.batch.micro_batch_size, 1, layout_of(config).data, config.data.max_seq_len)
        if own_data and run.inputs.is_file():
            shutil.copyfile(run.inputs, frozen.inputs)
        write_json(frozen.deepspeed, deepspeed_settings(config, plan))
        return _evaluate(config, run, ["--checkpoint", args.checkpoint, "--config", str(frozen.config), *tasks])


def _evaluate(config: RunConfig, run: RunDir, arguments: List[str]) -> int:
    attempt = lifecycle.next_attempt(run)  # no attempt of the run has used this number
    lifecycle.remove_error_files(run, attempt)
    log = run.logs / "eval.log"
    log.unlink(missing_ok=True)
    arguments = [str(run.path), *arguments, "--attempt", str(attempt)]
    code = torchrun.run_ranks(plan_local(config, "ftdist.serve.evaluate", *arguments), log)
    if code:
        raise failure.explain_failure(run, attempt, [log], code)
    return EXIT_DONE
