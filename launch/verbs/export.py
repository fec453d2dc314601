"""The verb ``export``: write a checkpoint in Hugging Face format or as a GGUF file."""

import argparse

from ftdist.base.errors import EXIT_DONE
from ftdist.launch.runs.programs import run_program
from ftdist.run.rundir import RunDir


def add_export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", metavar="RUN_DIR")
    parser.add_argument("--checkpoint", metavar="CHECKPOINT", default="last", help="last (default), best or a step")
    parser.add_argument("--out", metavar="DIR", help="default RUN_DIR/export, with --merged RUN_DIR/export-merged, "
                        "with --gguf RUN_DIR/export-gguf")  # fmt: skip
    parser.add_argument("--merged", action="store_true", help="fold the adapters of method=lora into the base model")
    parser.add_argument("--gguf", metavar="TYPE", help="write a GGUF file for llama.cpp and Ollama, adapters merged: "
                        "F32, F16, BF16, Q8_0, Q5_1, Q5_0, Q4_1 or Q4_0")  # fmt: skip


def export(args: argparse.Namespace) -> int:
    """Write a checkpoint in Hugging Face format or as a GGUF file.

    Raises:
        ConfigError: there is no such run or checkpoint.
    """
    run = RunDir.open(args.run_dir)
    run.find_checkpoint(args.checkpoint)
    out = [*(["--out", args.out] if args.out else []), *["--merged"] * args.merged,
           *(["--gguf", args.gguf] if args.gguf else [])]  # fmt: skip
    run_program(["ftdist.checkpoint.main", str(run.path), "--checkpoint", args.checkpoint, *out])
    return EXIT_DONE
