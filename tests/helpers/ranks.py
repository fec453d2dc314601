"""Run a function on several real ranks (forked processes with gloo) and collect what each returns.

A process that has imported torch, deepspeed and transformers is forked, which saves each rank about seven seconds of
CPU time. The parent must not have run autograd: autograd would then fail in the forked ranks.
"""

import gc
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

OTHERS_S = 5.0
"""How long the other ranks may take to end once one has ended."""
allowed = True
"""Whether the current test may start ranks. tests/conftest.py clears it in tests without the mark ``process``."""


def free_port() -> int:
    """Return a TCP port that is free now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def preload() -> None:
    """Import what ranks need, once in this process, so that no forked rank has to."""
    import deepspeed.module_inject.auto_ep_layer
    import deepspeed.runtime.superoffload.superoffload_stage3  # noqa: F401
    import torch
    import transformers.integrations.deepspeed
    import transformers.models.auto.tokenization_auto  # noqa: F401

    import ftdist.train.main  # noqa: F401
    from ftdist.engine.muon import import_muon

    import_muon()
    torch.set_num_threads(1)


def fork() -> int:
    """``os.fork`` without the parent's objects in the child's garbage collections, which would copy all their pages.

    If PyTorch had its pool of threads, the child makes a new one here. Otherwise its first threads would do that at the
    same time, and some would find none ("Invalid thread pool!").
    """
    gc.freeze()
    pid = os.fork()
    if pid:
        gc.unfreeze()
    elif torch := sys.modules.get("torch"):
        torch.set_num_threads(torch.get_num_threads())
    return pid


def run_ranks(function: Callable[..., Any], world_size: int, *args: Any, timeout_s: float = 240.0) -> List[Any]:
    """Call ``function(*args)`` on ranks 0 to ``world_size - 1``, with the environment variables that torchrun sets.

    No process is left running in any case.

    Returns:
        What each rank returned, in the order of ranks.

    Raises:
        AssertionError: a rank failed; the message is the traceback of the first one.
    """
    assert allowed, "this test starts ranks: mark it with @pytest.mark.process"
    preload()
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(world_size)}
    with tempfile.TemporaryDirectory() as folder:
        pids: Dict[int, int] = {}
        try:
            for rank in range(world_size):
                pid = fork()
                if pid == 0:
                    _child(function, args, Path(folder), {**environment, "RANK": str(rank)})
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


def _child(function: Callable[..., Any], args: Any, folder: Path, environment: Dict[str, str]) -> None:
    rank, world_size = environment["RANK"], int(environment["WORLD_SIZE"])
    os.environ.update(environment, LOCAL_RANK=rank)
    try:
        outcome = (True, function(*args))
    except BaseException:
        outcome = (False, traceback.format_exc())
    temporary = folder / f"{rank}.tmp"
    temporary.write_bytes(pickle.dumps(outcome))
    temporary.rename(folder / rank)
    # A rank that exits closes its connections, and gloo would then raise in a rank that is still working.
    deadline = time.monotonic() + OTHERS_S
    while outcome[0] and time.monotonic() < deadline and not all((folder / str(r)).exists() for r in range(world_size)):
        time.sleep(0.01)
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
                    deadline = min(deadline, time.monotonic() + OTHERS_S)  # the others may now wait for it forever
        time.sleep(0.01)


def _end(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        pass
