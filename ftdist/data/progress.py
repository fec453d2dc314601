"""Progress of preparing, on standard error: a live line on a terminal, a plain line now and then elsewhere."""

import sys
import time
from contextlib import contextmanager
from typing import Callable, Iterator

from rich.console import Console

PLAIN_EVERY_S = 10.0

Report = Callable[[str, int, int], None]
"""Called with the source's name, the documents read and the tokens made so far."""


@contextmanager
def show_progress() -> Iterator[Report]:
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
