"""Whole runs on forked ranks: each rank calls ``ftdist.train.main``, without torchrun."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, Mapping, Optional

from ftdist.run.rundir import RunDir
from tests.spawn import fork, free_port, preload

Fault = Callable[[], None]


class Group:
    """The ranks of one attempt at a run, started when the object is made.

    Args:
        run: a frozen run directory.
        world_size: the number of ranks.
        attempt: the number of this start of the run, from 0.
        arm: functions that some ranks call before the run, by rank.
    """

    def __init__(self, run: RunDir, world_size: int, attempt: int = 0, arm: Optional[Mapping[int, Fault]] = None):
        preload()
        environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(world_size)}
        self.run, self.codes, self.ended = run, dict[int, int](), dict[int, float]()
        self._pids: Dict[int, int] = {}
        for rank in range(world_size):
            pid = fork()
            if pid == 0:
                os.environ.update(environment, RANK=str(rank), LOCAL_RANK=str(rank))
                _be_rank(run, attempt, (arm or {}).get(rank))
            self._pids[rank] = pid

    @property
    def alive(self) -> bool:
        """Whether a rank is still running. Also records the exit codes and end times of those that are not."""
        for rank in self._pids.keys() - self.codes.keys():
            done, status = os.waitpid(self._pids[rank], os.WNOHANG)
            if done:
                self.codes[rank], self.ended[rank] = os.waitstatus_to_exitcode(status), time.time()
        return len(self.codes) < len(self._pids)

    def wait(self, timeout_s: float = 120.0) -> Dict[int, int]:
        """Wait until all ranks have ended. Returns the exit code of each, or minus the signal."""
        deadline = time.monotonic() + timeout_s
        while self.alive and time.monotonic() < deadline:
            time.sleep(0.02)
        late = sorted(self._pids.keys() - self.codes.keys())
        self.kill()
        assert not late, f"ranks {late} did not end within {timeout_s} s"
        return self.codes

    def wait_until(self, reached: Callable[[], bool], timeout_s: float = 120.0) -> None:
        """Wait for a moment of the run, which must come before its end."""
        deadline = time.monotonic() + timeout_s
        while not reached():
            assert self.alive, f"the ranks ended before that: {self.codes}"
            assert time.monotonic() < deadline, "the run did not come to that"
            time.sleep(0.002)

    def kill(self) -> None:
        """Send SIGKILL to all ranks at once, as when a machine loses power."""
        for rank in self._pids.keys() - self.codes.keys():
            os.kill(self._pids[rank], signal.SIGKILL)
        while self.alive:
            time.sleep(0.002)


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
    """Return a function for ``arm``: ``fault`` strikes that rank before its optimizer step ``step`` (0 is the first).

    The file ``struck`` is made at that moment.
    """

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
    """Start all ranks and wait until all have ended. No process is left in any case."""
    group = Group(run, world_size, arm=arm)
    codes = group.wait(timeout_s)
    when = struck.stat().st_mtime if struck.exists() else time.time()
    return Fallen(codes, when, {rank: at - when for rank, at in group.ended.items()})


def _be_rank(run: RunDir, attempt: int, arm: Optional[Fault]) -> None:
    try:
        from ftdist.train.main import main

        if arm is not None:
            arm()
        main([str(run.path), "--attempt", str(attempt)])
    finally:
        os._exit(70)  # main never returns
