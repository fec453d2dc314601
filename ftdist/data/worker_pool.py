"""A parallel ``map`` on a pool of worker processes that keeps the order and limits the number of items in memory."""

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
"""Maximum number of items per worker that were taken from the input and whose results were not fetched yet."""

_function: Optional[Callable[[Any], Any]] = None


def available_cores() -> int:
    """Return the number of CPU cores that this process may use.

    In a Slurm job or a container it can be smaller than the number of cores of the machine.
    """
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ordered_map(function: Callable[[Any], Any], items: Iterable[Any], num_workers: int) -> Iterator[Any]:
    """Apply ``function`` to each item in worker processes, and yield the results in the order of the items.

    Items are taken from ``items`` only while results are fetched, so at most ``IN_FLIGHT_PER_WORKER`` items per worker
    are in memory. (``multiprocessing.Pool.imap`` would read the whole input at once.)

    Args:
        function: The workers are forked and inherit it, so it does not have to be picklable.
        items: Must be picklable, and so must the results.
        num_workers: Number of processes. 1 runs everything in this process.

    Raises:
        FtdistError: A worker was killed.
    """
    if num_workers == 1:
        yield from map(function, items)
        return
    context = multiprocessing.get_context("fork")
    pool = ProcessPoolExecutor(num_workers, context, _start_worker, (function, os.getpid()))
    pending: Deque[Future[Any]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(_call, item))
            if len(pending) >= IN_FLIGHT_PER_WORKER * num_workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool as error:
        raise FtdistError(
            "a worker process of the data preparation was killed, possibly because memory ran out",
            "",
            "data.num_workers=1, or a machine with more memory",
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker(function: Callable[[Any], Any], parent: int) -> None:
    global _function
    _function = function
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the workers already use all cores
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; only the parent reacts to it
    end_with_parent(signal.SIGKILL)
    if sys.platform == "linux" and os.getppid() != parent:  # the parent ended before this call
        os._exit(1)


def _call(item: Any) -> Any:
    assert _function
    return _function(item)
