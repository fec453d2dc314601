"""Ctrl-C and SIGTERM while a run is under way."""

import contextlib
import ctypes
import signal
import sys
from types import FrameType
from typing import Any, Callable, Dict, Iterator, Optional

PR_SET_PDEATHSIG = 1
SAVES = "saving a checkpoint at the next step"


def end_with_launcher(number: int = signal.SIGTERM) -> None:
    """In a new child process: have the kernel send it a signal when its parent is gone, however it went (Linux). On
    SIGTERM torchrun stops its ranks."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(number))


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
