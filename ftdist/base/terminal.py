"""Display of long tasks, a copy of standard output in a log file, and formats of numbers and times.

``rich`` draws the spinner and refreshes the display. Its own displays ``Status`` and ``Progress`` are not used, for two
reasons: they leave the cursor hidden if the process is killed, and they write nothing to a file before the task ends.
"""

import io
import sys
import threading
import time
from contextlib import contextmanager
from typing import Any, Callable, Iterator, Optional, TextIO, cast

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from ftdist.base.output import PipeSafeOutput

LONG_TASK_S = 10.0
"""If the output is not a terminal, the label of a task is printed after this many seconds."""

SetLabel = Callable[[str], None]
"""Changes the label of a task that is running."""


@contextmanager
def task(label: str, enabled: bool = True) -> Iterator[SetLabel]:
    """Show that a long task is running, and print the time that it took at the end.

    On a terminal a spinner shows the label and the time so far. Elsewhere the label is printed if the task takes long.
    Nothing is printed at the end of a task that fails: the error is reported by the caller.

    Args:
        label: What the task does, for example "loading the model".
        enabled: If false, nothing is printed.

    Yields:
        A function that changes the label.
    """
    console, started = live_console(), time.monotonic()
    if enabled and console.is_terminal:
        activity = Activity(label)
        live = start_live_display(Spinner("dots", text=activity), console, transient=True)
        try:
            yield activity.set_label
        finally:
            live.stop()
    else:
        with print_if_long(label, enabled) as set_label:
            yield set_label
    if enabled:
        print(f"{label}: {format_seconds(time.monotonic() - started)}", file=stdout_and_log(), flush=True)


@contextmanager
def print_if_long(label: str, enabled: bool) -> Iterator[SetLabel]:
    """Print the label of a task once, when the task has taken ``LONG_TASK_S``. For output that is not a terminal."""
    activity = Activity(label)
    timer = threading.Timer(LONG_TASK_S, lambda: print(f"{activity.label} …", file=stdout_and_log(), flush=True))
    timer.daemon = True
    if enabled:
        timer.start()
    try:
        yield activity.set_label
    finally:
        timer.cancel()


class Activity:
    """The label of a running task and the time since it started. ``rich`` can print it."""

    def __init__(self, label: str) -> None:
        self.label, self._started = label, time.monotonic()

    def set_label(self, label: str) -> None:
        self.label = label

    def elapsed(self) -> str:
        return format_clock(time.monotonic() - self._started)

    def __str__(self) -> str:
        return f"{self.label}  {self.elapsed()}"

    def __rich__(self) -> Text:
        return Text(self.label).append(f" {self.elapsed()}", style="bright_black")


class Tee:
    """Standard output that is copied to a log file. Live displays write to ``terminal`` only."""

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


def stdout_and_log() -> TextIO:
    """Return standard output, which is copied to the log file if there is one."""
    return cast(TextIO, PipeSafeOutput(_stdout()))


def stdout_only() -> TextIO:
    """Return standard output without its copy in the log file. For live displays."""
    file = _stdout()
    return cast(TextIO, PipeSafeOutput(file.terminal if isinstance(file, Tee) else file))


def log_only() -> TextIO:
    """Return the log file to which standard output is copied. Without one, return a file that nobody reads."""
    file = _stdout()
    return file.log if isinstance(file, Tee) else io.StringIO()


def _stdout() -> Any:
    """Return ``sys.stdout``. While a live display of ``rich`` replaces it, return the file that it replaced."""
    return getattr(sys.stdout, "rich_proxied_file", sys.stdout)


def live_console() -> Console:
    """Return a console for live displays, which must not be copied to the log file."""
    return Console(file=stdout_only(), highlight=False, soft_wrap=False)


def start_live_display(renderable: Any, console: Console, transient: bool = False) -> Live:
    """Start a live display that does not redirect standard error and does not hide the cursor.

    Rank 0's standard error goes to its log file. A hidden cursor would stay hidden if the process were killed.

    Args:
        renderable: What to show. It is drawn again several times a second.
        console: Where to show it.
        transient: Whether the display is removed when it stops.
    """
    live = Live(renderable, console=console, redirect_stderr=False, transient=transient)
    live.start()
    console.show_cursor(True)
    return live


def format_compact(number: float) -> str:
    """Format a number with at most 4 characters: 871, 5.2k, 48k, 1.3M."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if number >= size:
            scaled = number / size
            return f"{scaled:.1f}{unit}" if scaled < 9.95 else f"{scaled:.0f}{unit}"
    return f"{number:.0f}"


def format_clock(seconds: Optional[float]) -> str:
    """Format a time as 0:07, 12:30, 3:05:00 or 2 d 4 h, and an unknown time as ``?``."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24} d {hours % 24} h"
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def format_seconds(seconds: float) -> str:
    """Format how long something took: 3.2 s, or 12:30 from one minute on."""
    return f"{seconds:.1f} s" if seconds < 60 else format_clock(seconds)
