"""Run a function in a process of its own: a crash, a full memory or a lack of time ends this process only."""

import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict

OK, SKIPPED, FAILED, STOPPED = "ok", "skipped", "failed", "stopped"


class Skip(Exception):
    """Raised by a function that can do nothing here. Its text says why."""


@dataclass(frozen=True)
class Outcome:
    """How it ended."""

    status: str
    """``ok``, ``skipped``, ``failed`` or ``stopped`` (it took too long)."""
    why: str = ""
    """Why there are no figures."""
    seconds: float = 0.0
    figures: Dict[str, Any] = field(default_factory=dict)


def run_alone(function: Callable[..., Dict[str, Any]], log: Path, timeout_s: float, start: str, *args: Any) -> Outcome:
    """Call ``function(*args)`` in a new process, and return what it returns: a dict of plain values.

    No process is left.

    Args:
        log: Gets what the process prints.
        start: ``fork``, which need not import the libraries again, or ``spawn``, which starts a new interpreter.
    """
    result = log.with_suffix(".json")
    child = multiprocessing.get_context(start).Process(target=_child, args=(function, log, result, args))
    started = time.monotonic()
    child.start()
    try:
        child.join(timeout_s)
        seconds = time.monotonic() - started
        if child.exitcode is None:
            return Outcome(STOPPED, f"took longer than {timeout_s:.0f} s", seconds)
    finally:
        _end(child)
    try:
        return Outcome(**{**json.loads(result.read_text(encoding="utf-8")), "seconds": seconds})
    except (OSError, ValueError):
        return Outcome(FAILED, f"its process ended with {child.exitcode}, see {log.name}", seconds)


def _child(function: Callable[..., Dict[str, Any]], log: Path, result: Path, args: Any) -> None:
    os.setsid()  # so that the processes of PyTorch's compiler can be ended with this one
    with log.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        outcome = Outcome(OK, figures=function(*args))
    except Skip as reason:
        outcome = Outcome(SKIPPED, str(reason))
    except BaseException as error:
        traceback.print_exc()
        lines = str(error).strip().splitlines() or [""]
        outcome = Outcome(FAILED, f"{type(error).__name__}: {lines[0][:200]}")
    temporary = result.with_suffix(".tmp")
    temporary.write_text(json.dumps(asdict(outcome)), encoding="utf-8")
    temporary.rename(result)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # the threads and the destructors of the libraries are of no interest


def _end(child: Any) -> None:
    with suppress(ProcessLookupError, PermissionError):  # has ended
        os.killpg(child.pid, signal.SIGKILL)
    if child.is_alive():
        child.kill()
    child.join()
