"""What is shown while something long is under way, and how times and numbers are written."""

import io
import sys
import threading
import time
from contextlib import contextmanager
from typing import Any, Callable, Iterator, Optional, TextIO, cast

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from ftdist.base.output import Output

LONG_S = 10.0
"""Where the output is not a terminal, what is under way is said when it has taken this long."""


Say = Callable[[str], None]
"""Changes what is shown of something that is under way."""


@contextmanager
def task(label: str, enabled: bool = True) -> Iterator[Say]:
    """Show that something long is under way, and in the end how long it took. Of what fails, the error is all that is
    shown: whoever raised it says it.

    On a terminal a spinner with the time so far; elsewhere a line when it is over, and one before where it takes long.
    """
    console, started = live_console(), time.monotonic()
    if enabled and console.is_terminal:
        doing = Doing(label)
        live = start_live(_Spinning(doing), console, transient=True)
        try:
            yield doing.say
        finally:
            live.stop()
    else:
        with said_if_long(label, enabled) as say:
            yield say
    if enabled:
        print(f"{label}: {format_seconds(time.monotonic() - started)}", file=plain_stdout(), flush=True)


@contextmanager
def said_if_long(label: str, enabled: bool) -> Iterator[Say]:
    """Off a terminal: print what is under way once, when it has taken LONG_S."""
    doing = Doing(label)
    timer = threading.Timer(LONG_S, lambda: print(f"{doing.label} …", file=plain_stdout(), flush=True))
    timer.daemon = True
    if enabled:
        timer.start()
    try:
        yield doing.say
    finally:
        timer.cancel()


class Tee:
    """Standard output that goes to a log file too. A live display writes to ``terminal`` alone."""

    def __init__(self, terminal: TextIO, log: TextIO) -> None:
        self.terminal, self.log = terminal, log

    def write(self, text: str) -> int:
        self.log.write(text)
        return self.terminal.write(text)

    def flush(self) -> None:
        self.log.flush()
        self.terminal.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.terminal, name)


class Doing:
    """What is under way, and for how long."""

    def __init__(self, label: str) -> None:
        self.label, self._started = label, time.monotonic()

    def say(self, label: str) -> None:
        self.label = label

    def elapsed(self) -> str:
        return format_time(time.monotonic() - self._started)

    def __str__(self) -> str:
        return f"{self.label}  {self.elapsed()}"


def plain_stdout(live: bool = False) -> TextIO:
    """Standard output as it is now, and not a live display's own redirection of it; what is ``live`` in no log."""
    file = getattr(sys.stdout, "rich_proxied_file", sys.stdout)
    return cast(TextIO, Output(file.terminal if live and isinstance(file, Tee) else file))


def log_stream() -> TextIO:
    """The log file that standard output goes to as well; where there is none, nowhere."""
    file = getattr(sys.stdout, "rich_proxied_file", sys.stdout)
    return file.log if isinstance(file, Tee) else io.StringIO()


class _Spinning:
    """A spinner, a label and the seconds so far."""

    def __init__(self, doing: Doing) -> None:
        self._doing, self._spinner = doing, Spinner("dots")

    def __rich__(self) -> Table:
        row = Table.grid(padding=(0, 1))
        row.add_row(self._spinner, Text(self._doing.label), Text(self._doing.elapsed(), style="bright_black"))
        return row


def start_live(renderable: Any, console: Console, transient: bool = False) -> Live:
    """A live display that leaves standard error alone (rank 0's goes to a log file) and the cursor visible: a process
    that is killed could not give it back."""
    live = Live(renderable, console=console, redirect_stderr=False, transient=transient)
    live.start()
    console.show_cursor(True)
    return live


def live_console() -> Console:
    return Console(file=plain_stdout(live=True), highlight=False, soft_wrap=False)


def compact(number: float) -> str:
    """4 digits at most: 871, 5.2k, 48k, 1.3M."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if number >= size:
            scaled = number / size
            return f"{scaled:.1f}{unit}" if scaled < 9.95 else f"{scaled:.0f}{unit}"
    return f"{number:.0f}"


def format_time(seconds: Optional[float]) -> str:
    """0:07, 12:30, 3:05:00, 2 d 4 h; ``?`` where unknown."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24} d {hours % 24} h"
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def format_seconds(seconds: float) -> str:
    """How long something took: 3.2 s, or 12:30."""
    return f"{seconds:.1f} s" if seconds < 60 else format_time(seconds)
