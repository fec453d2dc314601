"""What a user sees while a run is under way: a live line on a terminal, a few plain lines in a log file."""

import io
import statistics
import sys
import threading
import time
from collections import deque
from contextlib import contextmanager
from typing import Any, Callable, Deque, Iterator, Optional, TextIO, cast

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from ftdist.base.output import Output

PLAIN_LINES = 50
"""About how many plain lines a run prints where the output is not a terminal."""
MEDIAN_OF = 31
"""Step times that the time left is guessed from. A median: evaluations and checkpoints in between do not matter."""
BAR_WIDTH = 20
LONG_S = 10.0
"""Where the output is not a terminal, what is under way is said when it has taken this long."""

Say = Callable[[str], None]
"""Changes what is shown of something that is under way."""


class Progress:
    """Steps, loss, speed, memory and time left of a run, on standard output."""

    def __init__(self, enabled: bool, total_steps: int, start_step: int, every: Optional[int] = None) -> None:
        """
        Args:
            enabled: False prints nothing at all (ranks other than the first).
            total_steps: Optimizer steps of the whole run.
            start_step: Steps already done, of a run that resumes.
            every: Steps between two plain lines; default so that a run prints about fifty.
        """
        self._enabled = enabled
        self._total = total_steps
        self._every = every or max(1, -(-(total_steps - start_step) // PLAIN_LINES))
        self._step, self._start_step = start_step, start_step
        self._step_times: Deque[float] = deque(maxlen=MEDIAN_OF)
        self._last_update: Optional[float] = None  # what comes before the first step is not a step's time
        self._console = _console()
        self._live: Optional[Live] = None
        if enabled and self._console.is_terminal:
            self._live = _start_live(self._line("starting"), self._console)

    def update(self, step: int, loss: float, tokens_per_s: float, mem_gib: float, lr: float, grad_norm: float) -> None:
        """Show that ``step`` steps are done."""
        if not self._enabled:
            return
        now = time.monotonic()
        if step > self._step and self._last_update is not None:
            self._step_times.append((now - self._last_update) / (step - self._step))
        self._step, self._last_update = step, now
        left = format_time(self.seconds_left())
        if self._live is not None:
            numbers = f"loss {loss:.4f}  {compact(tokens_per_s)} tok/s  {mem_gib:.1f} GiB  {left} left"
            self._live.update(self._line(numbers))
        if step % self._every == 0 or step == self._total or step == self._start_step + 1:
            count = f"step {step:>{len(str(self._total))}}/{self._total}"
            print(
                f"{count}  loss {loss:.4f}  {compact(tokens_per_s)} tok/s  {mem_gib:.1f} GiB  lr {lr:.1e}"
                f"  norm {grad_norm:.2f}  {left} left",
                file=_stdout() if self._live is None else _log(),
                flush=True,
            )

    def seconds_left(self) -> Optional[float]:
        """Guessed from the median of recent step times; None before the first step."""
        if not self._step_times:
            return None
        return statistics.median(self._step_times) * (self._total - self._step)

    def note(self, text: str) -> None:
        """Print a line of its own, above the live line. Safe from any thread."""
        if not self._enabled:
            return
        if self._live is not None:
            self._console.print(Text(text))
        print(text, file=_stdout() if self._live is None else _log(), flush=True)

    @contextmanager
    def during(self, label: str) -> Iterator[Say]:
        """Show in the live line what is done between two steps (``evaluating 12/40``); elsewhere in one line, where it
        takes long."""
        if self._live is None:
            with _said_if_long(label, self._enabled) as say:
                yield say
            return
        shown, doing = self._live.renderable, _Doing(label)
        self._live.update(_Line(self._step, self._total, doing))
        try:
            yield doing.say
        finally:
            self._live.update(shown)

    def close(self) -> None:
        """Leave the live line as it is and go on below it."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _line(self, numbers: str) -> "_Line":
        return _Line(self._step, self._total, numbers)


@contextmanager
def task(label: str, enabled: bool = True) -> Iterator[Say]:
    """Show that something long is under way, and in the end how long it took. Of what fails, the error is all that is
    shown: whoever raised it says it.

    On a terminal a spinner with the time so far; elsewhere a line when it is over, and one before where it takes long.
    """
    console, started = _console(), time.monotonic()
    if enabled and console.is_terminal:
        doing = _Doing(label)
        live = _start_live(_Spinning(doing), console, transient=True)
        try:
            yield doing.say
        finally:
            live.stop()
    else:
        with _said_if_long(label, enabled) as say:
            yield say
    if enabled:
        print(f"{label}: {format_seconds(time.monotonic() - started)}", file=_stdout(), flush=True)


@contextmanager
def _said_if_long(label: str, enabled: bool) -> Iterator[Say]:
    """Off a terminal: print what is under way once, when it has taken LONG_S."""
    doing = _Doing(label)
    timer = threading.Timer(LONG_S, lambda: print(f"{doing.label} …", file=_stdout(), flush=True))
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


class _Doing:
    """What is under way, and for how long."""

    def __init__(self, label: str) -> None:
        self.label, self._started = label, time.monotonic()

    def say(self, label: str) -> None:
        self.label = label

    def elapsed(self) -> str:
        return format_time(time.monotonic() - self._started)

    def __str__(self) -> str:
        return f"{self.label}  {self.elapsed()}"


def _stdout(live: bool = False) -> TextIO:
    """Standard output as it is now, and not a live display's own redirection of it; what is ``live`` in no log."""
    file = getattr(sys.stdout, "rich_proxied_file", sys.stdout)
    return cast(TextIO, Output(file.terminal if live and isinstance(file, Tee) else file))


def _log() -> TextIO:
    """The log file that standard output goes to as well; where there is none, nowhere."""
    file = getattr(sys.stdout, "rich_proxied_file", sys.stdout)
    return file.log if isinstance(file, Tee) else io.StringIO()


class _Line:
    """``step 12/400 ━━━━─────  loss …``: the bar takes what the rest leaves of the width."""

    def __init__(self, step: int, total: int, rest: "str | _Doing") -> None:
        self._step, self._total, self._rest = step, total, rest

    def __rich_console__(self, console: Console, options: Any) -> Iterator[Text]:
        count, rest = f"step {self._step}/{self._total}", str(self._rest)
        width = min(BAR_WIDTH, options.max_width - len(count) - len(rest) - 3)
        line = Text(count, no_wrap=True, overflow="ellipsis")
        if width >= 4:
            filled = width * self._step // max(1, self._total)
            line.append(" ").append("━" * filled, style="green").append("━" * (width - filled), style="bright_black")
        line.append("  ").append(rest)
        yield line


class _Spinning:
    """A spinner, a label and the seconds so far."""

    def __init__(self, doing: _Doing) -> None:
        self._doing, self._spinner = doing, Spinner("dots")

    def __rich__(self) -> Table:
        row = Table.grid(padding=(0, 1))
        row.add_row(self._spinner, Text(self._doing.label), Text(self._doing.elapsed(), style="bright_black"))
        return row


def _start_live(renderable: Any, console: Console, transient: bool = False) -> Live:
    """A live display that leaves standard error alone (rank 0's goes to a log file) and the cursor visible: a process
    that is killed could not give it back."""
    live = Live(renderable, console=console, redirect_stderr=False, transient=transient)
    live.start()
    console.show_cursor(True)
    return live


def _console() -> Console:
    return Console(file=_stdout(live=True), highlight=False, soft_wrap=False)


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
