"""A parallel map that keeps the order and never holds more than a few items."""

import multiprocessing
import os
import signal
import sys
from collections import deque
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Callable, Deque, Iterable, Iterator, Optional

from ftdist.base.errors import FtdistError
from ftdist.base.process import end_with_parent

IN_FLIGHT_PER_WORKER = 3

_function: Optional[Callable[[Any], Any]] = None


def available_cores() -> int:
    """Cores that this process may use (a Slurm job or a container may have fewer than the machine)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ordered_map(function: Callable[[Any], Any], items: Iterable[Any], num_workers: int) -> Iterator[Any]:
    """``map(function, items)`` on forked processes. Items are taken only as results are fetched: at most
    IN_FLIGHT_PER_WORKER for each worker are under way (``Pool.imap`` would read all of its input at once).

    Args:
        function: inherited by the workers when they are forked, so it may hold what cannot be pickled.
        num_workers: 1 runs in this process.

    Raises:
        FtdistError: a worker was killed.
    """
    if num_workers == 1:
        yield from map(function, items)
        return
    context = multiprocessing.get_context("fork")
    pool = ProcessPoolExecutor(num_workers, context, _start_worker, (function, os.getpid()))
    under_way: Deque[Future[Any]] = deque()
    try:
        for item in items:
            under_way.append(pool.submit(_call, item))
            if len(under_way) >= IN_FLIGHT_PER_WORKER * num_workers:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    except BrokenProcessPool as error:
        raise FtdistError(
            "a tokenising process was killed, perhaps because memory ran out",
            "",
            "data.num_workers=1, or a machine with more memory",
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker(function: Callable[[Any], Any], parent: int) -> None:
    global _function
    _function = function
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the workers are the parallelism
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to every process; the parent ends the workers
    end_with_parent(signal.SIGKILL)
    if sys.platform == "linux" and os.getppid() != parent:  # it has ended already
        os._exit(1)


def _call(item: Any) -> Any:
    assert _function
    return _function(item)
