"""Export a checkpoint of a run: ``python -m ftdist.checkpoint.main RUN_DIR``."""

from ftdist.base.collector import pause_collector, resume_collector

if __name__ == "__main__":
    pause_collector()

import argparse
import sys
from pathlib import Path
from typing import List, Optional

from ftdist.base.errors import EXIT_DONE
from ftdist.base.main import run_main
from ftdist.base.names import require_utf8
from ftdist.base.output import accept_any_text, short_path
from ftdist.base.terminal import task
from ftdist.checkpoint.export import export_checkpoint
from ftdist.checkpoint.gguf_export import export_gguf
from ftdist.config.frozen import load_config
from ftdist.run.rundir import RunDir


def main(argv: Optional[List[str]] = None) -> int:
    """Export a checkpoint of a run. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="ftdist export", description="Export a checkpoint of a run.")
    parser.add_argument("run_dir", help="a run directory")
    parser.add_argument("--checkpoint", default="last", help="last, best or a step number")
    parser.add_argument("--out", help="the folder to write (default: RUN_DIR/export, -merged or -gguf)")
    parser.add_argument("--merged", action="store_true", help="fold the adapters into the base model")
    parser.add_argument("--gguf", metavar="TYPE", help="write a GGUF file with weights of this type")
    args = parser.parse_args(argv)
    return run_main(lambda: _export(args))


def _export(args: argparse.Namespace) -> int:
    run = RunDir.open(args.run_dir)
    out = Path(args.out) if args.out else run.gguf if args.gguf else run.merged if args.merged else run.export
    require_utf8("--out", out)
    checkpoint, config = run.find_checkpoint(args.checkpoint), load_config(run.config)
    with task(f"exporting {checkpoint.name}"):
        if args.gguf:
            measured = export_gguf(checkpoint, out, config, args.gguf)
        else:
            measured = [export_checkpoint(checkpoint, out, config, args.merged)]
    for line in filter(None, measured):
        print(line)
    print(f"exported to {short_path(out)}")
    return EXIT_DONE


if __name__ == "__main__":
    resume_collector()
    accept_any_text()
    sys.exit(main())
