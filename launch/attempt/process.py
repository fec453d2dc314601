"""Start ranks on this machine through torchrun, wait for them, and say in one message how they ended."""

import contextlib
import ctypes
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Callable, ContextManager, Iterator, Optional, Set

import psutil

from ftdist.base.process import is_alive
from ftdist.launch.attempt import signals
from ftdist.launch.attempt.command import LaunchPlan

PR_SET_CHILD_SUBREAPER = 36
LOOK_EVERY_S = 5.0


def start(plan: LaunchPlan, log: Path, preempt: Optional[Path] = None) -> int:
    """Run a plan to its end. No process of it is left, however it ends.

    Ctrl-C touches ``preempt`` (the ranks save and stop), a second one ends them at once. SIGTERM does what one does.
    What torchrun and W&B leave in the folder for temporary files, which is one of the run's own, goes with it.
    """
    sys.stdout.flush()
    before = set(psutil.Process().children(recursive=True))
    with log.open("ab") as errors, _subreaper(), scratch_folder() as temporary:
        child = subprocess.Popen(
            plan.argv, env={**os.environ, **plan.env, "TMPDIR": temporary}, stderr=errors, stdin=subprocess.DEVNULL,
            start_new_session=True, preexec_fn=signals.end_with_launcher,
        )  # fmt: skip
        try:
            with stop_on_signals(child.kill, preempt):
                return _wait(child)
        finally:
            _kill_all(child, before)


def _wait(child: "subprocess.Popen[bytes]") -> int:
    """The exit code of torchrun. One that is stopped, and all its ranks have ended, never sees that: it is ended."""
    while True:
        try:
            return child.wait(timeout=LOOK_EVERY_S)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(psutil.Error):
                torchrun = psutil.Process(child.pid)
                ranks = torchrun.children()
                ended = bool(ranks) and not any(is_alive(rank.pid) for rank in ranks)
                if torchrun.status() == psutil.STATUS_STOPPED and ended:
                    child.kill()


def scratch_folder() -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory(prefix="ftdist-", ignore_cleanup_errors=True)


@contextlib.contextmanager
def _subreaper() -> Iterator[None]:
    # Ranks run in sessions of their own; when torchrun is killed they become children of this process, not of init.
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield
    finally:
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 0)


def _kill_all(child: "subprocess.Popen[bytes]", before: Set[psutil.Process]) -> None:
    # Descendants of the child, and orphans of it that came to this process.
    left = [process for process in psutil.Process().children(recursive=True) if process not in before]
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.kill()
    child.wait()
    psutil.wait_procs([process for process in left if process.pid != child.pid], timeout=10)


def stop_on_signals(end_now: Callable[[], None], preempt: Optional[Path]) -> ContextManager[None]:
    """Ctrl-C and SIGTERM touch ``preempt``; the ranks see it."""

    def ask() -> str:
        assert preempt is not None
        preempt.touch()
        return signals.SAVES

    return signals.stop_on_signals(ask if preempt else None, end_now)
