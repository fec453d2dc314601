"""The time and the memory of what a device does."""

import time
from dataclasses import asdict
from typing import Any, Callable, Dict, Optional

import torch

from tests.bench.figures import spread


def timed(run: Callable[[], Any], times: int, device: torch.device) -> Dict[str, Any]:
    """Return the time of some calls, and the peak of the memory of this process, inputs and gradients included."""
    run()
    settle(device)
    reset_peak(device)
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        run()
        settle(device)
        seconds.append(time.perf_counter() - started)
    return {"seconds": asdict(spread(seconds)), "peak_bytes": peak(device)}


def settle(device: torch.device) -> None:
    """Wait until the device has done everything."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak(device: torch.device) -> Optional[int]:
    """Return the peak of allocated memory in bytes. None: it is not known (on a CPU)."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
