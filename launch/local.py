"""Start ranks on this machine through torchrun, wait for them, and say in one message how they ended."""

import contextlib
import ctypes
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Callable, ContextManager, Iterator, Optional, Set

import psutil

from ftdist.config import RunConfig
from ftdist.errors import EXIT_DONE, EXIT_PREEMPTED
from ftdist.rundir import RunDir

from . import signals
from .failure import LAST_LINES as LAST_LINES
from .failure import explain_failure as explain_failure
from .plan import LaunchPlan as LaunchPlan
from .plan import plan_local

PR_SET_CHILD_SUBREAPER = 36
LOOK_EVERY_S = 5.0
STATE_EXIT = {"done": EXIT_DONE, "preempted": EXIT_PREEMPTED}


def next_attempt(run: RunDir) -> int:
    """Attempts are counted from 0 in status.json; the ranks read it there."""
    status = run.read_status()
    return 0 if status.get("state") == "frozen" else int(status.get("attempt", 0)) + 1


def launch_run(config: RunConfig, run: RunDir) -> int:
    """Start or go on with the run of a run directory, and wait for it. Returns the exit code.

    Raises:
        LaunchError: a rank failed; the message is that of the first.
    """
    attempt = begin(run)
    plan = plan_local(config, "ftdist.train.main", [str(run.path), "--attempt", str(attempt)])
    log = run.logs / f"launcher.attempt-{attempt}.log"
    return conclude(run, attempt, log, start(plan, log, run.preempt))


def begin(run: RunDir) -> int:
    """Open a new attempt in the run directory. Returns its number."""
    attempt = next_attempt(run)
    clear_errors(run, attempt)
    clear_rests(run)
    run.preempt.unlink(missing_ok=True)
    run.cancel.unlink(missing_ok=True)
    run.write_status(state="starting", attempt=attempt, pid=os.getpid(), host=platform.node())
    return attempt


def conclude(run: RunDir, attempt: int, log: Path, code: int) -> int:
    """The exit code of an attempt whose processes have ended with ``code``, by what the run says of itself.

    Raises:
        LaunchError: it failed.
    """
    state = run.read_status().get("state")
    at_once = code == -signal.SIGKILL and run.preempt.exists()  # a second Ctrl-C
    if at_once and state not in STATE_EXIT:
        state = "preempted"
        run.write_status(state=state, exit_reason="ended at once, before it could save")
    if (code == 0 or at_once) and state in STATE_EXIT:
        return STATE_EXIT[state]
    attempt = max(attempt, int(run.read_status().get("attempt", 0)))  # restarts by torchrun count on
    error = explain_failure(run, attempt, log, code)
    if state not in ("failed", *STATE_EXIT):
        run.write_status(state="failed", exit_reason=error.found.splitlines()[0])
    raise error


def clear_errors(run: RunDir, attempt: int) -> None:
    """Remove error files of an attempt, so that what is found after it is its own."""
    run.logs.mkdir(exist_ok=True)
    for path in run.logs.glob(f"rank-*.attempt-{attempt}.error.json"):
        path.unlink()


def clear_rests(run: RunDir) -> None:
    """Remove what an attempt that was killed left half written: an export is as large as the model."""
    for target in (run.status, run.metrics, run.samples, run.export):
        for rest in run.path.glob(f".{target.name}.*"):
            if rest.is_dir() and not rest.is_symlink():
                shutil.rmtree(rest, ignore_errors=True)
            else:
                rest.unlink(missing_ok=True)


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
                ranks = [rank.status() for rank in torchrun.children()]
                if torchrun.status() == psutil.STATUS_STOPPED and set(ranks) == {psutil.STATUS_ZOMBIE}:
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
