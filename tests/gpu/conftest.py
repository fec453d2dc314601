"""Tests of what depends on the device. The same code runs on a CPU and, where there is one, on a GPU.

Each test runs in a process of its own: on a GPU it starts with an empty device, and a forked process could not use CUDA
after its parent has.
"""

from pathlib import Path
from typing import Any, Callable, Dict

import pytest

from tests.helpers.alone import OK, run_alone
from tests.helpers.ranks import preload

Run = Callable[..., Dict[str, Any]]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def run(device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Calls ``function(device, folder, *args)`` in a process of its own, and returns what it returns."""
    for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1")):  # a run of one rank
        monkeypatch.setenv(name, value)
    if device == "cpu":
        preload()

    def call(function: Callable[..., Any], *args: Any, on: str = device) -> Dict[str, Any]:
        log = tmp_path / f"{function.__name__}-{on}.log"
        outcome = run_alone(function, log, 110.0, "fork" if device == "cpu" else "spawn", on, tmp_path, *args)
        assert outcome.status == OK, f"{outcome.why}\n{log.read_text(errors='replace')[-4000:]}"
        return outcome.figures

    return call
