"""Progress of a run on standard output: a live line on a terminal, or about fifty plain lines in a file."""

import statistics
import time
from collections import deque
from contextlib import contextmanager
from typing import Any, Deque, Iterator, Optional

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.text import Text

from ftdist.base.terminal import (
    Activity,
    SetLabel,
    format_clock,
    format_compact,
    live_console,
    log_only,
    print_if_long,
    start_live_display,
    stdout_and_log,
)

PLAIN_LINES = 50
"""Approximate number of plain lines that a run prints if the output is not a terminal."""
RECENT_STEPS = 31
"""Number of recent steps from which the remaining time is estimated. Their median is used, so that evaluations and
checkpoints between steps have little effect."""
BAR_WIDTH = 20
MIN_BAR_WIDTH = 4


class Progress:
    """Shows the steps, loss, speed, memory and remaining time of a run on standard output.

    While a live line is on the terminal, plain lines go to the log file only.
    """

    def __init__(self, enabled: bool, total_steps: int, start_step: int, every: Optional[int] = None) -> None:
        """
        Args:
            enabled: If false, nothing is printed. Only rank 0 shows progress.
            total_steps: Optimizer steps of the whole run.
            start_step: Optimizer steps that were done before, if the run resumes.
            every: Optimizer steps between two plain lines. By default a run prints about fifty lines.
        """
        self._enabled = enabled
        self._total = total_steps
        self._every = every or max(1, -(-(total_steps - start_step) // PLAIN_LINES))
        self._step, self._start_step = start_step, start_step
        self._step_times: Deque[float] = deque(maxlen=RECENT_STEPS)
        self._last_update: Optional[float] = None  # the time until the first step is done is not measured
        self._console = live_console()
        self._live: Optional[Live] = None
        if enabled and self._console.is_terminal:
            self._live = start_live_display(self._line("starting"), self._console)

    def update(self, step: int, loss: float, tokens_per_s: float, mem_gib: float, lr: float, grad_norm: float) -> None:
        """Show that ``step`` optimizer steps are done."""
        if not self._enabled:
            return
        now = time.monotonic()
        if step > self._step and self._last_update is not None:
            self._step_times.append((now - self._last_update) / (step - self._step))
        self._step, self._last_update = step, now
        speed, left = f"{format_compact(tokens_per_s)} tok/s", format_clock(self.seconds_left())
        if self._live is not None:
            self._live.update(self._line(f"loss {loss:.4f}  {speed}  {mem_gib:.1f} GiB  {left} left"))
        if step % self._every == 0 or step == self._total or step == self._start_step + 1:
            count = f"step {step:>{len(str(self._total))}}/{self._total}"
            self._print(
                f"{count}  loss {loss:.4f}  {speed}  {mem_gib:.1f} GiB  lr {lr:.1e}  norm {grad_norm:.2f}  {left} left"
            )

    def seconds_left(self) -> Optional[float]:
        """Estimate the remaining time from recent steps. Returns None until the second step is done."""
        if not self._step_times:
            return None
        return statistics.median(self._step_times) * (self._total - self._step)

    def note(self, text: str) -> None:
        """Print a line above the live line. Safe to call from any thread."""
        if not self._enabled:
            return
        if self._live is not None:
            self._console.print(Text(text))
        self._print(text)

    @contextmanager
    def during(self, label: str) -> Iterator[SetLabel]:
        """Show what happens between two steps, for example "evaluating 12/40".

        On a terminal the live line shows the label and its time. Elsewhere the label is printed if the activity takes
        long.

        Yields:
            A function that changes the label.
        """
        if self._live is None:
            with print_if_long(label, self._enabled) as set_label:
                yield set_label
            return
        before, activity = self._live.renderable, Activity(label)
        self._live.update(self._line(activity))
        try:
            yield activity.set_label
        finally:
            self._live.update(before)

    def close(self) -> None:
        """Stop the live line. It stays on the terminal, and later output goes below it."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _line(self, text: "str | Activity") -> "ProgressLine":
        return ProgressLine(self._step, self._total, text)

    def _print(self, line: str) -> None:
        print(line, file=stdout_and_log() if self._live is None else log_only(), flush=True)


class ProgressLine:
    """A line for ``rich``: ``step 12/400 ━━━━─────  loss …``. The bar uses the width that the text leaves free."""

    def __init__(self, step: int, total: int, text: "str | Activity") -> None:
        self._step, self._total, self._text = step, total, text

    def __rich_console__(self, console: Console, options: Any) -> Iterator[RenderableType]:
        count, text = f"step {self._step}/{self._total}", str(self._text)
        width = min(BAR_WIDTH, options.max_width - len(count) - len(text) - 3)
        if width < MIN_BAR_WIDTH:
            yield Text(f"{count}  {text}", no_wrap=True, overflow="ellipsis")
            return
        yield Text(f"{count} ", end="")
        yield ProgressBar(
            max(1, self._total), self._step, width, style="bright_black", complete_style="green", finished_style="green"
        )
        yield Text(f"  {text}", no_wrap=True, overflow="ellipsis")
