"""Progress of data preparation on standard error: one live line on a terminal, otherwise a plain line every 10 s."""

import sys
import time
from contextlib import contextmanager
from typing import Callable, Iterator

from rich.console import Console

PLAIN_EVERY_S = 10.0

ReportProgress = Callable[[str, int, int], None]
"""Called with the name of the source, the number of documents read so far, and the number of tokens made so far."""


@contextmanager
def show_progress() -> Iterator[ReportProgress]:
    """Show progress within the ``with`` block. Yields the function that reports it."""
    console = Console(stderr=True)
    started = shown = time.monotonic()

    def line(source: str, documents: int, tokens: int) -> str:
        rate = documents / max(time.monotonic() - started, 1e-6)
        return f"preparing {source}: {documents:,} documents, {tokens:,} tokens, {rate:,.0f} documents/s"

    if console.is_terminal:
        with console.status("preparing data") as status:
            yield lambda *counts: status.update(line(*counts))
        return

    def report(*counts: object) -> None:
        nonlocal shown
        if time.monotonic() - shown >= PLAIN_EVERY_S:
            shown = time.monotonic()
            print(line(*counts), file=sys.stderr, flush=True)  # type: ignore[arg-type]

    yield report
