"""One attempt of a run: how it begins and how it ends."""

import os
import platform
import shutil
import signal
from pathlib import Path

from ftdist.base.errors import EXIT_DONE, EXIT_PREEMPTED
from ftdist.launch.attempt.failure import explain_failure
from ftdist.launch.attempt.signals import SAVES
from ftdist.run.rundir import RunDir

STATE_EXIT = {"done": EXIT_DONE, "preempted": EXIT_PREEMPTED}


def next_attempt(run: RunDir) -> int:
    """Attempts are counted from 0 in status.json; the ranks read it there."""
    status = run.read_status()
    return 0 if status.get("state") == "frozen" else int(status.get("attempt", 0)) + 1


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


def ask_to_stop(run: RunDir) -> str:
    """Ask the ranks of a run to save a checkpoint and end. Returns what happens now."""
    run.cancel.touch()
    run.preempt.touch()
    return SAVES
