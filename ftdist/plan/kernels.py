"""The kernels that replace parts of a model (``model.kernels``): on which devices they run."""

import os

from ftdist.base.errors import ConfigError
from ftdist.config.schema import Kernels

INTERPRETER = "TRITON_INTERPRET"
"""The variable that makes Triton interpret its kernels. They then run on a CPU too, thousands of times slower."""


def interpreted() -> bool:
    """Return whether Triton interprets its kernels in this process."""
    return os.environ.get(INTERPRETER) == "1"


def run_on(device: str) -> bool:
    """Return whether Liger's kernels run on a device: on a GPU, or wherever Triton interprets them.

    Args:
        device: ``cpu`` or ``cuda``.
    """
    return device == "cuda" or interpreted()


def check_kernels(kernels: Kernels, device: str) -> None:
    """Check that the kernels of a run work on its device.

    Args:
        device: ``cpu`` or ``cuda``.

    Raises:
        ConfigError: The kernels do not run on this device.
    """
    if kernels is not Kernels.none and not run_on(device):
        raise ConfigError(f"model.kernels={kernels.name} cannot be used on CPU", "a CUDA device", "model.kernels=none")
