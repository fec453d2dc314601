"""``ftdist eval MODEL --tasks TASKS``: count the questions that a model without a run answers correctly."""

import argparse
import re
import shutil
import tempfile
from pathlib import Path

from ftdist.base.errors import EXIT_DONE, ConfigError
from ftdist.base.json_files import read_json, write_json
from ftdist.config.data import SourceConfig
from ftdist.config.frozen import dump_config
from ftdist.config.resumable import EVALUATED, check_changes
from ftdist.config.schema import RunConfig
from ftdist.launch.attempt import failure, torchrun
from ftdist.launch.attempt.command import plan_local
from ftdist.launch.config import compose
from ftdist.launch.runs import inputs, resolve
from ftdist.plan.batch import BatchPlan
from ftdist.plan.deepspeed import deepspeed_settings
from ftdist.plan.layout import layout_of
from ftdist.run.adapters import base_name, find_adapters
from ftdist.run.file_names import ADAPTER_CONFIG, EXPORT_MARK
from ftdist.run.locations import check_model_folder, holds_model, is_gguf
from ftdist.run.rundir import RunDir
from ftdist.run.task_results import task_places

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
CHANGEABLE = (*(key for key in EVALUATED if key != "data"), "train.precision", "model.revision",
              "model.trust_remote_code")  # fmt: skip
"""Keys that ``ftdist eval MODEL key=value`` may change."""


def is_model(given: str) -> bool:
    """Return whether a word names a model and not a run: a folder of a model or an adapter, a .gguf file, or a name on
    the hub."""
    path = Path(given)
    if path.exists():
        return holds_model(path) or (path.is_file() and is_gguf(given))
    return bool(HUB_NAME.fullmatch(given)) and not path.parent.exists()  # else it is a path with a spelling mistake


def eval_model(args: argparse.Namespace) -> int:
    """Print how many questions a model answers correctly.

    Raises:
        ConfigError: there is no such model or task, or an override that does not fit.
        LaunchError: a rank failed.
    """
    if args.tasks is None:
        raise ConfigError(f"{args.run_dir} is a model, and there are no questions for it", "a run, or --tasks",
                          "--tasks stdlib_docs, or --tasks questions.jsonl")  # fmt: skip
    if args.checkpoint != "last":
        raise ConfigError(f"--checkpoint {args.checkpoint}: {args.run_dir} is a model, which has no checkpoints",
                          "a run, or no --checkpoint", "leave out --checkpoint")  # fmt: skip
    places = ",".join(task_places(args.tasks).values())
    check_changes(args.overrides, "eval MODEL", CHANGEABLE)
    config = compose.change(_config(args.run_dir), args.overrides)
    resolve.resolve_paths(config)
    check_model_folder(config)
    find_adapters(config)
    resolve.resolve_ranks(config)
    inputs.prepare_model(config)
    run = RunDir(tempfile.mkdtemp(prefix="ftdist-eval-"))  # if a rank fails, its log stays here
    run.logs.mkdir()
    run.config.write_text(dump_config(config), encoding="utf-8")
    plan = BatchPlan(config.batch.micro_batch_size, 1, layout_of(config).data, config.data.max_seq_len)
    write_json(run.deepspeed, deepspeed_settings(config, plan))
    log = run.logs / "eval.log"
    code = torchrun.run_ranks(
        plan_local(config, "ftdist.serve.evaluate", str(run.path), "--base", "--tasks", places), log
    )
    if code:
        raise failure.explain_failure(run, 0, [log], code)
    shutil.rmtree(run.path, ignore_errors=True)
    return EXIT_DONE


def _config(given: str) -> RunConfig:
    """Return the config of a run with this model. It needs a source of data, which is never read."""
    config = RunConfig(name="eval")
    if (Path(given) / ADAPTER_CONFIG).is_file() and not (Path(given) / "config.json").is_file():
        _use_adapter(config, Path(given))
    else:
        config.model.path, config.model.hub = (given, None) if Path(given).exists() else (None, given)
    config.data.sources = {"none": SourceConfig(builtin="fake")}
    config.train.max_steps = 1
    return config


def _use_adapter(config: RunConfig, folder: Path) -> None:
    """Set the model to the base model that an adapter names, with the adapter added to its weights.

    Raises:
        ConfigError: the base model had 4-bit weights, or random weights that are not stored anywhere.
    """
    mark, base = folder / EXPORT_MARK, base_name(str(folder))
    four_bits = mark.is_file() and read_json(mark).get("quantization")
    if four_bits or not base:
        why = "4 bits, to which it cannot be added" if four_bits else "random weights, which are not stored anywhere"
        raise ConfigError(f"{folder} is an adapter of a model with {why}",
                          "the run of the adapter, or its merged model",
                          "ftdist eval RUN_DIR --tasks …, or ftdist eval RUN_DIR/export-merged --tasks …")  # fmt: skip
    config.model.adapter = str(folder)
    if Path(base).is_absolute() or Path(base).exists():
        config.model.path = base
    else:
        config.model.hub, config.model.revision = base, read_json(folder / ADAPTER_CONFIG).get("revision")
    if (folder / "tokenizer_config.json").is_file():
        config.model.tokenizer = str(folder)
