"""Ctrl-C and SIGTERM while a run is under way."""

import contextlib
import signal
import sys
from types import FrameType
from typing import Any, Callable, Dict, Iterator, Optional

from ftdist.base.process import end_with_parent

SAVES = "saving a checkpoint at the next step"


def end_with_launcher() -> None:
    """End a new child process when its launcher ends. On SIGTERM torchrun stops its ranks."""
    end_with_parent(signal.SIGTERM)


@contextlib.contextmanager
def stop_on_signals(ask: Optional[Callable[[], str]], end_now: Callable[[], None]) -> Iterator[None]:
    """Either signal asks for a stop, a second Ctrl-C ends the run at once.

    Args:
        ask: asks, and says what then happens; None where nothing can be asked, and the first signal ends it.
    """
    interrupts = 0

    def stop(number: int, _: Optional[FrameType]) -> None:
        nonlocal interrupts
        interrupts += number == signal.SIGINT
        if ask is None or interrupts > 1:
            end_now()
        else:
            print(f"\nstopping: {ask()} (Ctrl-C again ends it at once)", file=sys.stderr, flush=True)

    before: Dict[int, Any] = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
