"""The verb ``eval``: held-out losses of a checkpoint."""

import argparse
import tempfile
from typing import List

from ftdist.base.errors import EXIT_DONE
from ftdist.base.json_files import write_json
from ftdist.config.resumable import EVALUATED, check_changes
from ftdist.config.schema import LaunchConfig, LaunchKind, RunConfig, dump_config, load_config
from ftdist.launch.attempt import failure, lifecycle, process
from ftdist.launch.backends.base import plan_local
from ftdist.launch.config import compose
from ftdist.launch.runs import ready, resolve
from ftdist.plan.batch import BatchPlan
from ftdist.plan.deepspeed import deepspeed_settings
from ftdist.plan.layout import layout_of
from ftdist.run.rundir import RunDir


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
    resolve.resolve_paths(config)
    if config.launch.kind is not LaunchKind.local:  # it was trained elsewhere, and is evaluated here
        config.launch = LaunchConfig(timeout_s=config.launch.timeout_s)
    resolve.resolve_ranks(config)
    ready.make_model_ready(config)
    ready.make_data_ready(config)
    with tempfile.TemporaryDirectory() as scratch:
        frozen = RunDir(scratch)
        frozen.config.write_text(dump_config(config), encoding="utf-8")
        plan = BatchPlan(config.batch.micro_batch_size, 1, layout_of(config).data, config.data.max_seq_len)
        write_json(frozen.deepspeed, deepspeed_settings(config, plan))
        return _evaluate(config, run, ["--checkpoint", args.checkpoint, "--config", str(frozen.config)])


def _evaluate(config: RunConfig, run: RunDir, arguments: List[str]) -> int:
    attempt = lifecycle.next_attempt(run)  # no attempt of the run has this number yet
    lifecycle.clear_errors(run, attempt)
    log = run.logs / "eval.log"
    log.unlink(missing_ok=True)
    arguments = [str(run.path), *arguments, "--attempt", str(attempt)]
    code = process.start(plan_local(config, "ftdist.serve.evaluate", arguments), log)
    if code:
        raise failure.explain_failure(run, attempt, log, code)
    return EXIT_DONE
