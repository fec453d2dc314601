"""Measure the peak memory of a rank. ``ftdist.plan.memory`` computes the memory that it will need."""

import resource
import sys

import torch


def peak_memory_gib(device: torch.device) -> float:
    """Return the peak memory of this rank in GiB: allocated memory on a GPU, resident memory of the process on CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes on macOS and in KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
