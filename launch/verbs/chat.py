"""The verb ``chat``: talk to a trained model."""

import argparse
from pathlib import Path

from ftdist.base.errors import EXIT_DONE, ConfigError
from ftdist.base.names import near_paths
from ftdist.base.output import quoted_path
from ftdist.config.frozen import load_config
from ftdist.launch.runs.programs import run_program
from ftdist.run.locations import holds_model
from ftdist.run.rundir import RUN_CONFIG, RunDir, checkpoint_step, refuse_sweep


def add_chat_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="RUN_DIR|MODEL", help="a run or a model folder")
    parser.add_argument("--max-tokens", type=int, default=256, help="maximum tokens of an answer (default 256)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 (default): always the most likely token")


def chat(args: argparse.Namespace) -> int:
    """Talk to an exported model.

    Raises:
        ConfigError: there is no model, or a flag's value is too small.
    """
    for flag, value, least in (("--max-tokens", args.max_tokens, 1), ("--temperature", args.temperature, 0)):
        if not value >= least:
            raise ConfigError(f"{flag} {value}", f"at least {least}", f"{flag} {least}")
    run = RunDir(args.path)
    trust = run.config.is_file() and load_config(run.config).model.trust_remote_code
    how = [f"--max-tokens={args.max_tokens}", f"--temperature={args.temperature}", *["--trust-remote-code"] * trust]
    run_program(["ftdist.serve.chat", str(_model_folder(args.path)), *how])
    return EXIT_DONE


def _model_folder(given: str) -> Path:
    """Return the folder of a run's export, or a folder that holds a model.

    Raises:
        ConfigError: there is no model. The message says what there is instead.
    """
    path, expected = Path(given), "a run directory with an export, or a Hugging Face model folder"
    run = next((RunDir(place) for place in (path, *path.parents) if (place / RUN_CONFIG).is_file()), None)
    model = run.export if run and run.path == path else path
    if holds_model(model):
        return model
    if run is None:
        refuse_sweep(path)
        near = " or ".join(f"ftdist chat {quoted_path(place)}" for place in near_paths(given) if not path.exists())
        found = "holds no config.json" if path.is_dir() else "does not exist"
        raise ConfigError(f"{given} {found}", expected, near or "run ftdist status, which lists the runs in ./runs")
    steps = [str(checkpoint_step(checkpoint)) for checkpoint in run.published_checkpoints()]
    holds = [*["an export"] * run.export.is_dir(), *[f"checkpoints of step {', '.join(steps)}"] * bool(steps)]
    found = "has no export" if path == run.path else "is not a model" if path.exists() else "does not exist"
    fix = "chat" if run.export.is_dir() else "export" if steps else "resume"
    raise ConfigError(f"{given} {found}; the run holds {' and '.join(holds) or 'no checkpoint yet'}", expected,
                      f"ftdist {fix} {quoted_path(run.path)}")  # fmt: skip
