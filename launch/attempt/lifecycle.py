"""The lifecycle of an attempt: how it begins and how it ends. It is the same for all backends.

Each start of a run is an attempt, numbered from 0 in status.json. The process that starts the ranks calls ``begin``
before it starts them and ``conclude`` after they have ended. In between rank 0 writes status.json.
"""

import contextlib
import os
import platform
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Dict, List, Optional

from ftdist.base.errors import EXIT_DONE, EXIT_PREEMPTED, FtdistError, LaunchError
from ftdist.config.launch import LaunchKind
from ftdist.launch.attempt.failure import explain_failure
from ftdist.launch.attempt.signals import SAVES
from ftdist.run.rundir import PAUSED, RunDir

STATE_EXIT = {"done": EXIT_DONE, PAUSED: EXIT_DONE, "preempted": EXIT_PREEMPTED}
"""The exit code for each state in which an attempt may end without a failure."""
ENDED_AT_ONCE = "ended immediately, before it could save"


def next_attempt(run: RunDir) -> int:
    """Return the number of the attempt that would begin now."""
    status = run.read_status()
    return 0 if status.get("state") == "frozen" else int(status.get("attempt", 0)) + 1


def begin(
    run: RunDir, kind: LaunchKind, attempt: Optional[int] = None, keep_requests: bool = False, **fields: Any
) -> int:
    """Begin an attempt: remove what earlier ones left, and write status.json. Returns the attempt's number.

    Args:
        kind: what starts the ranks.
        attempt: the number of the attempt, if it is already known. Defaults to the next one.
        keep_requests: see ``clear``.
        fields: more fields of status.json. By default the process of this attempt is the current one, on this host.
    """
    number = next_attempt(run) if attempt is None else attempt
    clear(run, number, keep_requests)
    run.write_status(state="starting", attempt=number, **{**owner(run, kind), **fields})
    return number


def owner(run: RunDir, kind: LaunchKind) -> Dict[str, Any]:
    """Return the fields of status.json that say that the current process starts the ranks. Fields that a Slurm job of
    an earlier attempt wrote become null."""
    left: Dict[str, Any] = {key: None for key in ("job_id", "nodes", "exit_code") if key in run.read_status()}
    return {"pid": os.getpid(), "host": platform.node(), "backend": kind.name, **left}


def clear(run: RunDir, attempt: int, keep_requests: bool = False) -> None:
    """Remove what earlier attempts left in the run directory.

    Args:
        attempt: the number of the attempt that begins.
        keep_requests: keep a request to stop, because it may be meant for this attempt.
    """
    remove_error_files(run, attempt)
    remove_temporary_files(run)
    run.deadline.unlink(missing_ok=True)
    if not keep_requests:
        run.preempt.unlink(missing_ok=True)
        run.cancel.unlink(missing_ok=True)


def remove_error_files(run: RunDir, attempt: int) -> None:
    """Remove the error files of an attempt number, so that those found later belong to the attempt that begins."""
    run.logs.mkdir(exist_ok=True)
    for path in run.logs.glob(f"rank-*.attempt-{attempt}.error.json"):
        path.unlink()


def remove_temporary_files(run: RunDir) -> None:
    """Remove half-written files of an attempt that was killed. A half-written export may be as large as the model."""
    for target in (run.status, run.metrics, run.samples, run.export):
        for path in run.path.glob(f".{target.name}.*"):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def conclude(run: RunDir, attempt: int, code: int, logs: List[Path], stopped: str = "") -> int:
    """Return the exit code of an attempt whose processes have ended. The state in status.json decides.

    Args:
        attempt: the number that ``begin`` returned. Restarts by torchrun get the numbers after it.
        code: exit code of the process that started the ranks, or minus the number of the signal that ended it.
        logs: output of the process that started the ranks, one file for each machine.
        stopped: why the ranks were ended on purpose, if they were. Then the attempt has not failed, even if it could
            not save. A second Ctrl-C counts as such a reason.

    Raises:
        LaunchError: the attempt failed. The message says which rank failed first, and why.
    """
    if ended_at_once(run, code):
        stopped = stopped or ENDED_AT_ONCE
    state = str(run.read_status().get("state"))
    if stopped and state not in STATE_EXIT:
        state = "preempted"
        mark_stopped(run, stopped)
    if (stopped or code == 0) and state in STATE_EXIT:
        return STATE_EXIT[state]
    newest = max(attempt, int(run.read_status().get("attempt", 0)))
    error = explain_failure(run, newest, logs, code)
    mark_failed(run, error)
    raise error


def ended_at_once(run: RunDir, code: int) -> bool:
    """Return whether a second Ctrl-C ended the ranks: they were killed after a request to stop.

    Args:
        code: exit code of the process that started the ranks, or minus the number of the signal that ended it.
    """
    return code == -signal.SIGKILL and run.preempt.exists()


@contextlib.contextmanager
def failures_recorded(run: RunDir) -> Iterator[None]:
    """Record in status.json a LaunchError that is raised inside the ``with`` block."""
    try:
        yield
    except LaunchError as error:
        mark_failed(run, error)
        raise


def mark_failed(run: RunDir, error: FtdistError, **fields: Any) -> None:
    """Write the failure of an attempt into status.json, unless a rank has already written how the attempt ended.

    Args:
        fields: more fields of status.json.
    """
    if run.read_status().get("state") not in ("failed", *STATE_EXIT):
        reason = str(error).partition("\n")[0]
        run.write_status(state="failed", **{"exit_reason": reason, **fields})


def mark_stopped(run: RunDir, reason: str, **fields: Any) -> None:
    """Write into status.json that an attempt was stopped and can be resumed.

    Args:
        fields: more fields of status.json.
    """
    run.write_status(state="preempted", exit_reason=reason, **fields)


def ask_to_stop(run: RunDir) -> str:
    """Ask the ranks of a run to save a checkpoint and end. Returns what happens now, for the user."""
    run.cancel.touch()
    run.preempt.touch()
    return SAVES
