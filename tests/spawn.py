"""Run a function on several real ranks (gloo, forked processes) and collect what each returns.

Forking a process that has imported torch, deepspeed and transformers makes a two-rank test take a second instead of
six. Nothing may run autograd in the parent before: a forked child could not.
"""

import os
import pickle
import signal
import socket
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any, Callable, Dict, List

allowed = True
"""Whether the current test may start ranks. tests/conftest.py clears it in tests without the mark ``process``."""


def free_port() -> int:
    """Return a TCP port that is free now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def run_ranks(function: Callable[..., Any], world_size: int, *args: Any, timeout_s: float = 240.0) -> List[Any]:
    """``function(*args)`` on ranks 0 … world_size - 1, with the environment that torchrun gives. Raises AssertionError
    with the trace of the first rank that failed; no process is left in any case."""
    assert allowed, "this test starts ranks: mark it with @pytest.mark.process"
    import deepspeed  # noqa: F401 - imported once here, not in each rank
    import torch
    import transformers.integrations.deepspeed  # noqa: F401

    torch.set_num_threads(1)
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(world_size)}
    with tempfile.TemporaryDirectory() as folder:
        pids: Dict[int, int] = {}
        try:
            for rank in range(world_size):
                pid = os.fork()
                if pid == 0:
                    _child(function, args, Path(folder) / str(rank), {**environment, "RANK": str(rank)})
                pids[rank] = pid
            _wait(pids, timeout_s)
        finally:
            for pid in pids.values():
                _end(pid)
        results = []
        for rank in range(world_size):
            path = Path(folder) / str(rank)
            assert path.exists(), f"rank {rank} ended without a result"
            ok, value = pickle.loads(path.read_bytes())
            results.append((ok, rank, value))
        failed = [f"rank {rank}:\n{value}" for ok, rank, value in results if not ok]
        assert not failed, failed[0]
        return [value for _, _, value in results]


def _child(function: Callable[..., Any], args: Any, result: Path, environment: Dict[str, str]) -> None:
    os.environ.update(environment, LOCAL_RANK=environment["RANK"])
    try:
        outcome = (True, function(*args))
    except BaseException:
        outcome = (False, traceback.format_exc())
    temporary = result.with_suffix(".tmp")
    temporary.write_bytes(pickle.dumps(outcome))
    temporary.rename(result)
    time.sleep(0.3 if outcome[0] else 0.0)  # let gloo's threads of the other ranks finish
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0 if outcome[0] else 1)


def _wait(pids: Dict[int, int], timeout_s: float) -> None:
    deadline, waiting = time.monotonic() + timeout_s, set(pids.values())
    while waiting and time.monotonic() < deadline:
        for pid in list(waiting):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                waiting.discard(pid)
                if status:
                    deadline = min(deadline, time.monotonic() + 5)  # the others now wait for it in vain
        time.sleep(0.01)


def _end(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        pass
