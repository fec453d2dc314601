"""Two ranks that are forked once and work on one task after another. After a failure they are forked again."""

import multiprocessing
import os
import signal
import time
import traceback
from multiprocessing.connection import Connection, wait
from typing import Any, Callable, List, Tuple

from ftdist.base.errors import FtdistError
from ftdist.parallel.rank_process import die_with_parent
from tests.helpers.ranks import OTHERS_S, fork, free_port

WORLD_SIZE = 2


class Failed(Exception):
    """A rank failed. The message is the reason of the first one, or says that it took too long."""

    def __init__(self, reason: str, refused: bool = False) -> None:
        """
        Args:
            refused: Whether it reported an error to the user, in place of a traceback.
        """
        super().__init__(reason)
        self.refused = refused


class Pair:
    """Ranks 0 and 1 of a process group."""

    def __init__(self, function: Callable[..., Any]) -> None:
        """
        Args:
            function: What each rank calls. It starts the process group if it is not started.
        """
        self._function = function
        self._ranks: List[Tuple[int, Connection]] = []

    def call(self, *args: Any, timeout_s: float) -> Any:
        """Call the function on both ranks. Returns what rank 0 returned.

        Raises:
            Failed: A rank raised an exception, ended or did not answer in time.
        """
        if not self._ranks:
            self._start()
        for _, pipe in self._ranks:
            pipe.send(args)
        answers: List[Any] = [None] * WORLD_SIZE
        deadline, problem = time.monotonic() + timeout_s, None
        while None in answers and time.monotonic() < deadline:
            waiting = {pipe: rank for rank, (_, pipe) in enumerate(self._ranks) if answers[rank] is None}
            for pipe in wait(list(waiting), timeout=deadline - time.monotonic()):
                rank = waiting[pipe]
                answers[rank] = _answer(pipe)
                if isinstance(answers[rank], Failed):
                    problem = problem or answers[rank]
                    deadline = min(deadline, time.monotonic() + OTHERS_S)  # the other one may now wait for it forever
        if problem or None in answers:
            self.close()
            raise problem or Failed(f"no answer after {timeout_s:.0f} s")
        return answers[0][0]

    def _start(self) -> None:
        port = str(free_port())
        for rank in range(WORLD_SIZE):
            mine, theirs = multiprocessing.Pipe()
            pid = fork()
            if pid == 0:
                os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, WORLD_SIZE=str(WORLD_SIZE),
                                  RANK=str(rank), LOCAL_RANK=str(rank))  # fmt: skip
                _serve(theirs, self._function)
            theirs.close()
            self._ranks.append((pid, mine))

    def close(self) -> None:
        """End both ranks."""
        for pid, pipe in self._ranks:
            pipe.close()
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        self._ranks = []


def _answer(pipe: Connection) -> Any:
    try:
        return pipe.recv()
    except EOFError:
        return Failed("the rank ended")


def _serve(pipe: Connection, function: Callable[..., Any]) -> None:
    """Answer calls until the parent ends. This is the whole life of a rank. An answer is a list with the result, or
    Failed."""
    die_with_parent()
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    while True:
        try:
            answer: Any = [function(*pipe.recv())]
        except FtdistError as error:
            answer = Failed(error.found, True)
        except EOFError:
            os._exit(0)
        except BaseException as error:
            if os.environ.get("FTDIST_TRACE"):
                answer = Failed(traceback.format_exc())
            else:
                answer = Failed(f"{type(error).__name__}: {error}".splitlines()[0][:200])
        pipe.send(answer)
