"""The time of each phase of a step.

``data`` is the time that the host waits for the rows of the step. Then come ``forward``, ``backward``, ``agreement``
(the sums over all ranks, with the time that a rank waits for slower ones) and ``update``. DeepSpeed reduces gradients
in the backward or in the update, depending on the ZeRO stage.

On CUDA the host runs ahead of the device, so the device's own times are measured with events. They are read one step
later, when the device has passed them: reading them earlier would make the host wait.
"""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Dict, List, Tuple

import torch


class PhaseClock:
    """Measures the phases of steps."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._seconds: Dict[str, float] = defaultdict(float)
        self._events: List[Tuple[str, Any, Any]] = []
        self._before: List[Tuple[str, Any, Any]] = []

    @contextmanager
    def phase(self, name: str, on_host: bool = False) -> Iterator[None]:
        """Measure what happens inside a ``with`` block.

        Args:
            name: The phase. Its times in a step are added up.
            on_host: The phase runs on the host only, so it is not measured on the device.
        """
        if self._cuda and not on_host:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            yield
            end.record()
            self._events.append((name, start, end))
            return
        started = time.perf_counter()
        yield
        self._seconds[name] += time.perf_counter() - started

    def end_step(self) -> Dict[str, float]:
        """Return the seconds of each phase of the newest step that is known, by metric (``perf/data_s``).

        On CUDA, those of the device are of the step before this one.
        """
        found, self._seconds = self._seconds, defaultdict(float)
        for name, start, end in self._before:
            found[name] += start.elapsed_time(end) / 1000
        self._before, self._events = self._events, []
        return {f"perf/{name}_s": seconds for name, seconds in found.items()}
