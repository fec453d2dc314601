"""Whole runs on forked ranks (``ftdist.train.main`` itself, without torchrun), one of which is made to fail."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict

from ftdist.base.json_files import read_json
from ftdist.run.rundir import RunDir
from tests.spawn import free_port

Fault = Callable[[], None]


@dataclass(frozen=True)
class Fallen:
    """How the ranks ended."""

    codes: Dict[int, int]
    """Exit code by rank, or minus the signal."""
    struck: float
    """Time at which the fault struck."""
    ended_s: Dict[int, float]
    """Seconds from the fault to the end, by rank."""


def at_step(step: int, fault: Fault, struck: Path) -> Fault:
    """Called in a rank: ``fault`` strikes it before its optimizer step ``step`` (0 is the first)."""

    def arm() -> None:
        from ftdist.train import loop

        train_step = loop.train_step

        def struck_step(training: Any, index: int) -> Any:
            if index == step:
                struck.touch()
                fault()
            return train_step(training, index)

        loop.train_step = struck_step

    return arm


def run_group(run: RunDir, world_size: int, arm: Dict[int, Fault], struck: Path, timeout_s: float = 120.0) -> Fallen:
    """Start all ranks, wait for all of them to end. No process is left in any case."""
    import deepspeed  # noqa: F401 - imported once here, not in each rank
    import transformers.integrations.deepspeed  # noqa: F401

    import ftdist.train.main  # noqa: F401

    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(world_size)}
    pids: Dict[int, int] = {}
    for rank in range(world_size):
        pid = os.fork()
        if pid == 0:
            os.environ.update(environment, RANK=str(rank), LOCAL_RANK=str(rank))
            _be_rank(run, arm.get(rank))
        pids[rank] = pid
    codes: Dict[int, int] = {}
    ended: Dict[int, float] = {}
    deadline = time.monotonic() + timeout_s
    while len(codes) < world_size and time.monotonic() < deadline:
        for rank in pids.keys() - codes.keys():
            done, status = os.waitpid(pids[rank], os.WNOHANG)
            if done:
                codes[rank], ended[rank] = os.waitstatus_to_exitcode(status), time.time()
        time.sleep(0.02)
    for rank in pids.keys() - codes.keys():
        os.kill(pids[rank], signal.SIGKILL)
        os.waitpid(pids[rank], 0)
    assert len(codes) == world_size, f"ranks {sorted(pids.keys() - codes.keys())} did not end within {timeout_s} s"
    when = struck.stat().st_mtime if struck.exists() else time.time()
    return Fallen(codes, when, {rank: at - when for rank, at in ended.items()})


def _be_rank(run: RunDir, arm: Any) -> None:
    try:
        from ftdist.train.main import main

        if arm is not None:
            arm()
        main([str(run.path)])
    finally:
        os._exit(70)  # main never returns


def error_record(run: RunDir, rank: int) -> Dict[str, Any]:
    return read_json(run.error_file(rank, 0))
