"""Start the ranks of this machine through torchrun, and wait until they have ended."""

import contextlib
import ctypes
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Iterator, Optional, Set

import psutil

from ftdist.base.process import is_alive
from ftdist.launch.attempt import signals
from ftdist.launch.attempt.command import LaunchPlan

PR_SET_CHILD_SUBREAPER = 36
POLL_S = 5.0
KILLED_S = 10.0
"""Seconds to wait until killed processes are gone."""


def run_ranks(plan: LaunchPlan, log: Path, request: Optional[Path] = None) -> int:
    """Run a plan and wait until it ends. When this function returns, none of its processes is left.

    Ctrl-C and SIGTERM touch ``request``, and the ranks save and stop. A second Ctrl-C ends them immediately. The ranks
    get a TMPDIR of their own, which is removed together with what torchrun and W&B leave in it.

    Args:
        plan: the command of torchrun.
        log: file for the standard error of torchrun.
        request: file that asks the ranks to stop. Without it the first signal ends them.

    Returns:
        torchrun's exit code, or minus the number of the signal that ended it.
    """
    sys.stdout.flush()
    before = set(psutil.Process().children(recursive=True))
    with log.open("ab") as errors, _adopting_orphans(), temporary_folder() as temporary:
        child = subprocess.Popen(
            plan.argv, env={**os.environ, **plan.env, "TMPDIR": temporary}, stderr=errors, stdin=subprocess.DEVNULL,
            start_new_session=True, preexec_fn=signals.end_with_launcher,
        )  # fmt: skip
        end_now = child.kill
        handling = signals.touch_on_signals(request, end_now) if request else signals.stop_on_signals(None, end_now)
        try:
            with handling:
                return _wait(child)
        finally:
            _kill_all(child, before)


def _wait(child: "subprocess.Popen[bytes]") -> int:
    """Return the exit code of torchrun. A stopped torchrun never sees that its ranks have ended, so it is killed."""
    while True:
        try:
            return child.wait(timeout=POLL_S)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(psutil.Error):
                torchrun = psutil.Process(child.pid)
                ranks = torchrun.children()
                ended = bool(ranks) and not any(is_alive(rank.pid) for rank in ranks)
                if torchrun.status() == psutil.STATUS_STOPPED and ended:
                    child.kill()


def temporary_folder() -> "tempfile.TemporaryDirectory[str]":
    """Make a folder for temporary files, to be removed at the end of a ``with`` block."""
    return tempfile.TemporaryDirectory(prefix="ftdist-", ignore_cleanup_errors=True)


@contextlib.contextmanager
def _adopting_orphans() -> Iterator[None]:
    # Ranks run in sessions of their own. If torchrun is killed, they become children of this process, not of init.
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield
    finally:
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 0)


def _kill_all(child: "subprocess.Popen[bytes]", before: Set[psutil.Process]) -> None:
    """Kill the descendants of the child, also those whose parents have ended, which this process has adopted."""
    left = [process for process in psutil.Process().children(recursive=True) if process not in before]
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.kill()
    child.wait()
    psutil.wait_procs([process for process in left if process.pid != child.pid], timeout=KILLED_S)
