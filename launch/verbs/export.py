"""The verb ``export``: write a checkpoint in Hugging Face format."""

import argparse

from ftdist.base.errors import EXIT_DONE
from ftdist.launch.runs.programs import run_program
from ftdist.run.rundir import RunDir


def add_export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", metavar="RUN_DIR")
    parser.add_argument("--checkpoint", metavar="CHECKPOINT", default="last", help="last (default), best or a step")
    parser.add_argument("--out", metavar="DIR", help="default RUN_DIR/export, with --merged RUN_DIR/export-merged")
    parser.add_argument("--merged", action="store_true", help="fold the adapters of method=lora into the base model")


def export(args: argparse.Namespace) -> int:
    """Write a checkpoint in Hugging Face format.

    Raises:
        ConfigError: there is no such run or checkpoint.
    """
    run = RunDir.open(args.run_dir)
    run.find_checkpoint(args.checkpoint)
    out = [*(["--out", args.out] if args.out else []), *["--merged"] * args.merged]
    run_program(["ftdist.checkpoint.export", str(run.path), "--checkpoint", args.checkpoint, *out])
    return EXIT_DONE
