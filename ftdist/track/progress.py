"""What a user sees while a run is under way: a live line on a terminal, a few plain lines in a log file."""

import statistics
import time
from collections import deque
from contextlib import contextmanager
from typing import Any, Deque, Iterator, Optional

from rich.console import Console
from rich.live import Live
from rich.text import Text

from ftdist.base.terminal import (
    Doing,
    Say,
    compact,
    format_time,
    live_console,
    log_stream,
    plain_stdout,
    said_if_long,
    start_live,
)

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
        self._console = live_console()
        self._live: Optional[Live] = None
        if enabled and self._console.is_terminal:
            self._live = start_live(self._line("starting"), self._console)

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
                file=plain_stdout() if self._live is None else log_stream(),
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
        print(text, file=plain_stdout() if self._live is None else log_stream(), flush=True)

    @contextmanager
    def during(self, label: str) -> Iterator[Say]:
        """Show in the live line what is done between two steps (``evaluating 12/40``); elsewhere in one line, where it
        takes long."""
        if self._live is None:
            with said_if_long(label, self._enabled) as say:
                yield say
            return
        shown, doing = self._live.renderable, Doing(label)
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


class _Line:
    """``step 12/400 ━━━━─────  loss …``: the bar takes what the rest leaves of the width."""

    def __init__(self, step: int, total: int, rest: "str | Doing") -> None:
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
