"""A trace of some steps by PyTorch's profiler, and a summary of it in words (``debug.profile``)."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple, Type

import torch
from torch.profiler import ProfilerActivity, profile

from ftdist.config.debug import profiled_steps

KINDS: Tuple[Tuple[str, Tuple[str, ...]], ...] = (
    ("attention", ("scaled_dot_product", "varlen_attn", "flex_attention", "flash_fwd", "flash_bwd")),
    ("collectives", ("c10d::", "nccl", "gloo", "record_param_comms")),
    ("matrix products", ("::mm", "::addmm", "::bmm", "::baddbmm", "::linear", "grouped_mm", "gemm", "mkldnn_linear")),
    ("embeddings and indexing", ("embedding", "index", "gather", "scatter")),
    ("copies", ("copy", "memcpy", "memset", "::clone", "::cat", "fill", "zero_")),
    ("softmax and loss", ("softmax", "nll_loss", "cross_entropy", "logsumexp")),
    ("optimizer", ("_foreach", "_fused_adam", "adamw", "optimizer.step", "multi_tensor")),
)
"""Kinds of operations, and parts of their names. An operation is of the first kind that fits; the rest is
elementwise."""
SMALL = 0.005
"""Kinds with a smaller share of the time are not in the summary."""


class StepProfiler:
    """Profiles the steps that ``debug.profile`` names, on one rank. Use it as a context manager.

    If the run stops earlier, the trace contains the steps until then.
    """

    def __init__(self, steps: Optional[str], folder: Path, rank: int, note: Callable[[str], None]) -> None:
        """
        Args:
            steps: ``FROM-TO``, counted from 1; None for no profile.
            folder: Folder of the trace.
            note: Prints a line.
        """
        self._wanted = profiled_steps(steps) if steps else None
        self._folder, self._rank, self._note = folder, rank, note
        self._running: Any = None
        self._steps: List[int] = []

    def __enter__(self) -> "StepProfiler":
        return self

    def __exit__(self, kind: Optional[Type[BaseException]], *_: Any) -> None:
        if self._running and kind is None:
            self._finish()
        elif self._wanted and kind is None:
            first, last = self._wanted
            self._note(f"debug.profile: no step from {first} to {last} was run, so there is no trace")

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Run one step inside a ``with`` block, and profile it if it is one of those steps."""
        traced = self._wanted is not None and self._wanted[0] <= number <= self._wanted[1]
        if traced and self._running is None:
            cuda = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
            self._running = profile(activities=[ProfilerActivity.CPU, *cuda])
            self._running.start()
        yield
        if traced and self._wanted:
            self._steps.append(number)
            if number == self._wanted[1]:
                self._finish()

    def _finish(self) -> None:
        self._running.stop()
        first, last = self._steps[0], self._steps[-1]
        self._folder.mkdir(exist_ok=True)
        trace = self._folder / f"steps-{first}-{last}.rank{self._rank}.json.gz"
        self._running.export_chrome_trace(str(trace))
        if self._rank == 0:
            for line in summary(self._running.key_averages(), len(self._steps)):
                self._note(line)
            self._note(f"trace of steps {first} to {last}: {trace} (open it at https://ui.perfetto.dev)")
        self._running, self._wanted = None, None


def summary(averages: Any, steps: int) -> List[str]:
    """Return where the time of a step goes, by kind of operation, in at most ten lines.

    Args:
        averages: The profiler's ``key_averages()``.
        steps: Number of steps that it has recorded.
    """
    times: Dict[str, float] = defaultdict(float)
    counts: Dict[str, int] = defaultdict(int)
    largest: Dict[str, Tuple[float, str]] = {}
    on_device = any(event.self_device_time_total for event in averages)
    for event in averages:
        seconds = (event.self_device_time_total if on_device else event.self_cpu_time_total) / 1e6 / steps
        kind = kind_of(event.key)
        times[kind] += seconds
        counts[kind] += event.count
        largest[kind] = max(largest.get(kind, (0.0, "")), (seconds, event.key))
    whole = sum(times.values()) or 1.0
    lines = [f"profile: {whole:.3f} s of operations in a step, on the {'GPU' if on_device else 'CPU'} of rank 0"]
    for kind, seconds in sorted(times.items(), key=lambda item: -item[1]):
        if seconds >= whole * SMALL:
            most = f"; largest: {largest[kind][1]}, {largest[kind][0]:.3f} s"
            number = f"{counts[kind] // steps:,} operations"
            lines.append(f"  {kind}: {seconds / whole:.0%}, {seconds:.3f} s in {number}{most}")
    return lines


def kind_of(name: str) -> str:
    """Return the kind of an operation of the profiler."""
    lower = name.lower()
    return next((kind for kind, parts in KINDS if any(part in lower for part in parts)), "elementwise and other")
