"""Random faults at random times, for ten seconds and for ten minutes."""

import os
import random
from pathlib import Path

import pytest

from tests.faults.soak import soak
from tests.faults.table import fault


@pytest.mark.timeout(1800)
@pytest.mark.slow  # each of these faults has a test of its own that CI runs
@pytest.mark.parametrize("minutes", [1 / 6, 10])
@fault(
    "training",
    "any of these faults at any time",
    "SIGKILL of a random rank or of everything, SIGTERM once, twice and followed by SIGKILL "
    "after 2 s, SIGSTOP and SIGCONT, a full disk, at random times for 10 seconds and for 10 minutes",
    "resumed, the run is bit for bit equal to the undisturbed one: metrics, samples, weights, checkpoints",
)
def test_soak(tmp_path: Path, minutes: float) -> None:
    seed = int(os.environ.get("FTDIST_SOAK_SEED", random.randrange(10**6)))
    soak(tmp_path, 60.0 * minutes, seed)
