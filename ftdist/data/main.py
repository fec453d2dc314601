"""``python -m ftdist.data.main prepare|preview CONFIG``: prepare data, or show what would be trained."""

import argparse
import logging
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Callable, List, Optional

from ftdist.base.errors import EXIT_DONE
from ftdist.base.main import run_main
from ftdist.base.output import accept_any_text, read_config_text
from ftdist.config.checks import check_data
from ftdist.config.frozen import load_config, parse_config
from ftdist.config.schema import RunConfig
from ftdist.run.prepared import data_folder, is_ready, read_meta
from ftdist.run.sample import print_table


def main(arguments: Optional[List[str]] = None) -> int:
    """Run the program. Returns the exit code (see ``ftdist.base.errors``)."""
    parser = argparse.ArgumentParser(prog="python -m ftdist.data.main", description=__doc__)
    parser.add_argument("command", choices=["prepare", "preview"])
    parser.add_argument("config", help="path of a YAML file, or - for standard input")
    parser.add_argument("-n", type=int, default=2, help="number of rows that preview shows")
    parser.add_argument("--html", type=Path, help="write the preview to this HTML file")
    given = parser.parse_args(arguments)

    def command(config: RunConfig) -> None:
        if given.command == "prepare":
            run_prepare(config)
        else:
            from ftdist.data.preview import preview

            preview(config, given.n, given.html)

    return run_step(command, given.config)


def run_step(command: Callable[[RunConfig], None], file: str) -> int:
    """Load a config and run a command on it. Errors are printed to standard error.

    Args:
        file: Path of a YAML file, or ``-`` for standard input.

    Returns:
        The exit code.
    """

    def step() -> int:
        config = parse_config(read_config_text(), "standard input") if file == "-" else load_config(file)
        check_data(config.data)
        command(config)
        return EXIT_DONE

    return run_main(step)


def run_prepare(config: RunConfig) -> None:
    """Prepare the data, and print its folder and statistics."""
    from ftdist.data.prepare import prepare

    started, found = time.monotonic(), is_ready(data_folder(config))
    folder = prepare(config)
    print(f"data {folder} ({'found' if found else f'prepared in {time.monotonic() - started:.1f} s'})")
    print_table(read_meta(folder))


def quiet_libraries() -> None:
    """Switch off logs, warnings and progress bars of libraries. Errors are raised as exceptions anyway."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)


if __name__ == "__main__":
    accept_any_text()
    quiet_libraries()
    sys.exit(main())
