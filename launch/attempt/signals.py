"""Ctrl-C and SIGTERM in a launcher while its run is under way."""

import contextlib
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any, Callable, Dict, Iterator, Optional

from ftdist.base.process import end_with_parent

SAVES = "saving a checkpoint at the next step"
"""What happens after a request to stop, for the user."""


def end_with_launcher() -> None:
    """Make a new child process get SIGTERM when its launcher ends. On SIGTERM, torchrun stops its ranks."""
    end_with_parent(signal.SIGTERM)


@contextlib.contextmanager
def stop_on_signals(ask: Optional[Callable[[], str]], end_now: Callable[[], object]) -> Iterator[None]:
    """Handle signals inside the ``with`` block: Ctrl-C and SIGTERM ask for a stop, a second Ctrl-C ends the run.

    Args:
        ask: requests a stop, and returns a text for the user about what happens next. None if a stop cannot be
        requested: the first signal then ends the run. end_now: ends the run immediately.
    """
    interrupts = 0

    def stop(number: int, _: Optional[FrameType]) -> None:
        nonlocal interrupts
        interrupts += number == signal.SIGINT
        if ask is None or interrupts > 1:
            end_now()
        else:
            print(f"\nstopping: {ask()} (press Ctrl-C again to end the run immediately)", file=sys.stderr, flush=True)

    before: Dict[int, Any] = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def touch_on_signals(request: Path, end_now: Callable[[], None]) -> contextlib.AbstractContextManager[None]:
    """Like ``stop_on_signals``. A stop is requested by creating a file, which the ranks or the sweep look for.

    Args:
        request: the file.
        end_now: ends the run immediately.
    """

    def ask() -> str:
        request.touch()
        return SAVES

    return stop_on_signals(ask, end_now)
