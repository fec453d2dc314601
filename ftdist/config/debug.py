"""The section ``debug`` of the run config."""

import re
from dataclasses import dataclass
from typing import Optional, Tuple

from ftdist.base.errors import ConfigError

STEPS = re.compile(r"(\d+)-(\d+)")


@dataclass
class DebugConfig:
    deterministic: bool = False
    """Use deterministic kernels only, which are slower on GPUs. An operation that has no deterministic
    implementation raises an error."""
    detect_anomaly: bool = False
    """Name the forward operation whose backward pass produced a NaN. Several times slower."""
    profile: Optional[str] = None
    """Steps to profile with PyTorch's profiler, for example ``3-5`` (counted from 1). Each rank writes a trace to
    ``profile/`` in the run directory, and the log says where the time went. null: none."""


def profiled_steps(value: str) -> Tuple[int, int]:
    """Return the first and the last step of ``debug.profile``, counted from 1.

    Raises:
        ConfigError: It is not ``FROM-TO``.
    """
    found = STEPS.fullmatch(value)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise ConfigError(f"debug.profile={value}", "FROM-TO: the first and the last step, counted from 1",
                          "debug.profile=3-5")  # fmt: skip
    return int(found[1]), int(found[2])
