"""``python -m ftdist.data.main prepare|preview CONFIG``: make the prepared data, or look at what would be trained."""

import argparse
import copy
import logging
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import List, Optional

from rich.console import Console

from ftdist.config import RunConfig, load_config, parse_config
from ftdist.data.cache import data_folder, is_ready, read_meta
from ftdist.data.sample import print_left_out, print_legend, print_table, print_tokens, shown_parts
from ftdist.errors import EXIT_DONE, EXIT_FAILED, FtdistError

PREVIEW_DOCUMENTS = 200


def main(arguments: Optional[List[str]] = None) -> int:
    """Returns the exit code (see ``ftdist.errors``)."""
    parser = argparse.ArgumentParser(prog="python -m ftdist.data.main", description=__doc__)
    parser.add_argument("command", choices=["prepare", "preview"])
    parser.add_argument("config", help="a YAML file, or - for standard input")
    parser.add_argument("-n", type=int, default=2, help="rows to show")
    given = parser.parse_args(arguments)
    try:
        config = parse_config(sys.stdin.read(), "standard input") if given.config == "-" else load_config(given.config)
        if given.command == "prepare":
            run_prepare(config)
        else:
            run_preview(config, given.n)
    except FtdistError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # the reader (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_DONE
    except OSError as error:  # no space left, no permission
        print(f"error: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return EXIT_DONE


def run_prepare(config: RunConfig) -> None:
    """Prepare, and print where the data is and what became of the sources."""
    from ftdist.data.prepare import prepare

    started, found = time.monotonic(), is_ready(data_folder(config))
    folder = prepare(config)
    print(f"data {folder} ({'found' if found else f'prepared in {time.monotonic() - started:.1f} s'})")
    print_table(read_meta(folder))


def run_preview(config: RunConfig, num_rows: int) -> None:
    """Show rows as they would be trained. Data that is not prepared yet is shown from its first documents."""
    from ftdist.data.prepare import build

    folder = data_folder(config)
    if is_ready(folder):
        _show(config, folder, num_rows)
        return
    few = copy.deepcopy(config)
    few.data.num_workers = 1
    for source in [*few.data.sources.values(), *few.data.heldout.values()]:
        source.max_documents = min(source.max_documents or PREVIEW_DOCUMENTS, PREVIEW_DOCUMENTS)
    with tempfile.TemporaryDirectory() as temporary:
        build(few, Path(temporary) / "data")
        print(f"of the first {PREVIEW_DOCUMENTS} documents of each source:")
        _show(few, Path(temporary) / "data", num_rows)


def _show(config: RunConfig, folder: Path, num_rows: int) -> None:
    from ftdist.data.loader import open_set, row_ids
    from ftdist.data.stats import token_texts
    from ftdist.data.tokenizer import load_tokenizer

    console, tokenizer, train = Console(), load_tokenizer(config), open_set(folder, "train")
    print_legend(console)
    for row in row_ids(config.seed, train.num_rows, 0, min(num_rows, train.num_rows)).tolist():
        documents = train.row(row)
        used = sum(len(ids) for ids, _ in documents)
        many = "document" if len(documents) == 1 else "documents"
        console.rule(f"row {row}: {len(documents)} {many}, {used:,} of {config.data.max_seq_len:,} tokens")
        for number, (ids, trained) in enumerate(documents, 1):
            console.print(f"— document {number}: {len(ids)} tokens, {int(trained.sum())} trained", style="cyan")
            first, last = shown_parts(len(ids))
            between = slice(first.stop, last.start)
            print_tokens(token_texts(tokenizer, ids[first], trained[first]), console)
            print_left_out(len(ids[between]), int(trained[between].sum()), console)
            if len(ids[last]):
                print_tokens(token_texts(tokenizer, ids[last], trained[last]), console)
    console.rule()
    print_table(read_meta(folder), console)


def _quiet_libraries() -> None:
    """What libraries log or warn is no use to a user; what goes wrong is raised."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)


if __name__ == "__main__":
    _quiet_libraries()
    sys.exit(main())
