"""Peak memory of a rank."""

import resource
import sys

import torch


def peak_memory_gib(device: torch.device) -> float:
    """Peak memory of this rank: allocated on the GPU, or resident on CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
