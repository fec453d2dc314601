"""The rank programs of ftdist on forked processes, without torchrun."""

import importlib
import os
import signal
import time
from pathlib import Path
from typing import Callable, Dict, Mapping, Optional
from unittest import mock

from ftdist.launch import cli
from ftdist.launch.attempt import torchrun
from ftdist.launch.attempt.command import LaunchPlan
from ftdist.run.rundir import RunDir
from tests.helpers.forkserver import forking
from tests.helpers.ranks import fork, free_port, preload

Arm = Callable[[], None]
"""Changes a rank before it starts its program, for example so that it fails later."""


class Group:
    """Ranks that execute the ``main`` of a module. They are started when the object is made.

    Args:
        module: the name of the module.
        arguments: the arguments of its ``main``.
        world_size: the number of ranks.
        arm: functions that some ranks call first, by rank.
        env: further environment variables of the ranks.
    """

    def __init__(
        self, module: str, arguments: list[str], world_size: int, arm: Optional[Mapping[int, Arm]] = None,
        env: Optional[Mapping[str, str]] = None,
    ) -> None:  # fmt: skip
        preload()
        main, self.port = importlib.import_module(module).main, free_port()
        variables = {
            **(env or {}), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self.port), "WORLD_SIZE": str(world_size),
            "LOCAL_WORLD_SIZE": str(world_size),
        }  # fmt: skip
        self.codes: Dict[int, int] = {}
        """Exit codes of the ranks that have ended, or minus the signal."""
        self.ended: Dict[int, float] = {}
        """When they ended."""
        self.pids: Dict[int, int] = {}
        """Process IDs of the ranks."""
        for rank in range(world_size):
            pid = fork()
            if pid == 0:
                try:
                    os.environ.update(variables, RANK=str(rank), LOCAL_RANK=str(rank))
                    if arm and rank in arm:
                        arm[rank]()
                    main(arguments)
                finally:
                    os._exit(70)  # main never returns
            self.pids[rank] = pid

    @property
    def alive(self) -> bool:
        """Whether a rank is still running. Also records the exit codes and end times of those that are not."""
        for rank in self.pids.keys() - self.codes.keys():
            done, status = os.waitpid(self.pids[rank], os.WNOHANG)
            if done:
                self.codes[rank], self.ended[rank] = os.waitstatus_to_exitcode(status), time.time()
        return len(self.codes) < len(self.pids)

    def wait(self, timeout_s: float = 120.0) -> Dict[int, int]:
        """Wait until all ranks have ended. Returns the exit code of each, or minus the signal."""
        deadline = time.monotonic() + timeout_s
        while self.alive and time.monotonic() < deadline:
            time.sleep(0.02)
        late = sorted(self.pids.keys() - self.codes.keys())
        self.kill()
        assert not late, f"ranks {late} did not end within {timeout_s} s"
        return self.codes

    def wait_until(self, reached: Callable[[], bool], timeout_s: float = 120.0) -> None:
        """Wait until ``reached`` returns True. Fails if the ranks end before."""
        deadline = time.monotonic() + timeout_s
        while not reached():
            assert self.alive, f"the ranks ended before that: {self.codes}"
            assert time.monotonic() < deadline, "the ranks did not reach that moment"
            time.sleep(0.005)

    def kill(self) -> None:
        """Send SIGKILL to all ranks at once, as when a machine loses power."""
        for rank in self.pids.keys() - self.codes.keys():
            os.kill(self.pids[rank], signal.SIGKILL)
        while self.alive:
            time.sleep(0.005)


def start_attempt(
    run: RunDir, world_size: int, attempt: int = 0, arm: Optional[Mapping[int, Arm]] = None,
    env: Optional[Mapping[str, str]] = None,
) -> Group:  # fmt: skip
    """Start or resume a frozen run."""
    return Group("ftdist.train.main", [str(run.path), "--attempt", str(attempt)], world_size, arm, env)


def ftdist_with_forked_ranks(*words: str | Path) -> int:
    """Run ``ftdist WORDS…`` in this process, with forked ranks in place of torchrun. Returns the exit code.

    Other programs that it starts, such as the one that prepares data, are forked too (see forkserver.py).

    This saves ten seconds of CPU time in tests that are not about the start of processes. Signals do not reach the
    ranks. ``capfd`` captures the output.
    """
    with mock.patch.object(torchrun, "run_ranks", run_plan), forking():
        return cli.dispatch([*map(str, words)])


def run_plan(plan: LaunchPlan, log: Path, request: Optional[Path] = None) -> int:
    """Execute a plan for torchrun on forked ranks: replaces ``ftdist.launch.attempt.torchrun.run_ranks``."""
    from torch.distributed import TCPStore

    world_size = int(plan.argv[plan.argv.index("--nproc-per-node") + 1])
    program = plan.argv[len(plan.argv) - plan.argv[::-1].index("-m") :]
    group = Group(program[0], program[1:], world_size, env={**plan.env, "TORCHELASTIC_USE_AGENT_STORE": "True"})
    store = TCPStore("127.0.0.1", group.port, world_size, is_master=True, wait_for_workers=False)  # as torchrun's agent
    codes = group.wait()
    del store
    log.touch()
    return max(codes.values(), key=abs)
