"""What a user sees while a run is under way: a live line on a terminal, a few plain lines in a log file."""

import statistics
import sys
import time
from collections import deque
from contextlib import contextmanager
from typing import Any, Deque, Iterator, Optional, TextIO, cast

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from ftdist.output import Output

PLAIN_LINES = 50
"""About how many plain lines a run prints where the output is not a terminal."""
MEDIAN_OF = 31
"""Step times that the time left is guessed from. A median: evaluations and checkpoints in between do not matter."""
BAR_WIDTH = 20


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
        elif step % self._every == 0 or step == self._total or step == self._start_step + 1:
            count = f"step {step:>{len(str(self._total))}}/{self._total}"
            print(
                f"{count}  loss {loss:.4f}  {compact(tokens_per_s)} tok/s  {mem_gib:.1f} GiB  lr {lr:.1e}"
                f"  norm {grad_norm:.2f}  {left} left",
                file=_stdout(),
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
        else:
            print(text, file=_stdout(), flush=True)

    @contextmanager
    def task(self, label: str) -> Iterator[None]:
        """Like ``task`` below, while the run's live line is there."""
        if self._live is None:
            with task(label, self._enabled):
                yield
            return
        shown, started = self._live.renderable, time.monotonic()
        self._live.update(_Spinning(label))
        try:
            yield
        finally:
            self._live.update(shown)
            self.note(f"{label}: {format_seconds(time.monotonic() - started)}")

    def close(self) -> None:
        """Leave the live line as it is and go on below it."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _line(self, numbers: str) -> "_Line":
        return _Line(self._step, self._total, numbers)


@contextmanager
def task(label: str, enabled: bool = True) -> Iterator[None]:
    """Show that something long is under way, and in the end how long it took.

    On a terminal a spinner with the time so far; elsewhere the label at once and the time when it is over.
    """
    console, started = _console(), time.monotonic()
    if not enabled:
        yield
    elif console.is_terminal:
        live = _start_live(_Spinning(label), console, transient=True)
        try:
            yield
        finally:
            live.stop()
        console.print(Text(f"{label}: {format_seconds(time.monotonic() - started)}"))
    else:
        print(f"{label}: ", end="", file=_stdout(), flush=True)
        ending = "failed after "
        try:
            yield
            ending = ""
        finally:
            print(f"{ending}{format_seconds(time.monotonic() - started)}", file=_stdout(), flush=True)


def _stdout() -> TextIO:
    """Standard output as it is now, and not a live display's own redirection of it."""
    return cast(TextIO, Output(getattr(sys.stdout, "rich_proxied_file", sys.stdout)))


class _Line:
    """``step 12/400 ━━━━─────  numbers``: the bar takes what the numbers leave of the width."""

    def __init__(self, step: int, total: int, numbers: str) -> None:
        self._step, self._total, self._numbers = step, total, numbers

    def __rich_console__(self, console: Console, options: Any) -> Iterator[Text]:
        count = f"step {self._step}/{self._total}"
        width = min(BAR_WIDTH, options.max_width - len(count) - len(self._numbers) - 3)
        line = Text(count, no_wrap=True, overflow="ellipsis")
        if width >= 4:
            filled = width * self._step // max(1, self._total)
            line.append(" ").append("━" * filled, style="green").append("━" * (width - filled), style="bright_black")
        line.append("  ").append(self._numbers)
        yield line


class _Spinning:
    """A spinner, a label and the seconds so far."""

    def __init__(self, label: str) -> None:
        self._label, self._started = label, time.monotonic()
        self._spinner = Spinner("dots")

    def __rich__(self) -> Table:
        row = Table.grid(padding=(0, 1))
        elapsed = format_time(time.monotonic() - self._started)
        row.add_row(self._spinner, Text(self._label), Text(elapsed, style="bright_black"))
        return row


def _start_live(renderable: Any, console: Console, transient: bool = False) -> Live:
    """A live display that leaves standard error alone (rank 0's goes to a log file) and the cursor visible: a process
    that is killed could not give it back."""
    live = Live(renderable, console=console, redirect_stderr=False, transient=transient)
    live.start()
    console.show_cursor(True)
    return live


def _console() -> Console:
    return Console(file=_stdout(), highlight=False, soft_wrap=False)


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
