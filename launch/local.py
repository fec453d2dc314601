"""Start ranks on this machine through torchrun, wait for them, and say in one message how they ended."""

import contextlib
import ctypes
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import FrameType
from typing import Any, Callable, Dict, Iterator, List, Optional, Set

import psutil

from ftdist.config import RunConfig
from ftdist.errors import EXIT_DONE, EXIT_FAILED, EXIT_PREEMPTED, LaunchError
from ftdist.rundir import RunDir, read_json

from .plan import LaunchPlan as LaunchPlan
from .plan import plan_local

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
LAST_LINES = 30
KILLED_UNDER_DEEPSPEED = re.compile(r"^(?:(\S+): )?\[.*exits with return code = -(\d+)", re.MULTILINE)
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
    if code == 0 and state in STATE_EXIT:
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
            shutil.rmtree(rest, ignore_errors=True) if rest.is_dir() else rest.unlink(missing_ok=True)


def start(plan: LaunchPlan, log: Path, preempt: Optional[Path] = None) -> int:
    """Run a plan to its end. No process of it is left, however it ends.

    Ctrl-C touches ``preempt`` (the ranks save and stop), a second one ends them at once. SIGTERM does what one does.
    What torchrun and W&B leave in the folder for temporary files, which is one of the run's own, goes with it.
    """
    sys.stdout.flush()
    before = set(psutil.Process().children(recursive=True))
    scratch = tempfile.TemporaryDirectory(prefix="ftdist-", ignore_cleanup_errors=True)
    with log.open("ab") as errors, _subreaper(), scratch as temporary:
        child = subprocess.Popen(
            plan.argv, env={**os.environ, **plan.env, "TMPDIR": temporary}, stderr=errors, stdin=subprocess.DEVNULL,
            start_new_session=True, preexec_fn=stop_with_launcher,
        )  # fmt: skip
        try:
            with stop_on_signals(child.kill, preempt):
                return child.wait()
        finally:
            _kill_all(child, before)


def stop_with_launcher() -> None:
    # torchrun gets SIGTERM when the launcher is gone, however it went, and stops its ranks.
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


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


@contextlib.contextmanager
def stop_on_signals(end_now: Callable[[], None], preempt: Optional[Path]) -> Iterator[None]:
    """Ctrl-C and SIGTERM ask for a stop, a second Ctrl-C ends the run at once."""
    interrupts = 0

    def stop(number: int, _: Optional[FrameType]) -> None:
        nonlocal interrupts
        interrupts += number == signal.SIGINT
        if preempt is None or interrupts > 1:
            end_now()  # what is left of it is ended below
        else:
            preempt.touch()
            print("\nstopping: saving a checkpoint at the next step (Ctrl-C again ends it at once)", file=sys.stderr)

    before: Dict[int, Any] = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def explain_failure(run: RunDir, attempt: int, log: Path | List[Path], code: int) -> LaunchError:
    """One message for what may be many stack traces: the earliest error that a rank left, else how it was killed."""
    records: List[Dict[str, Any]] = []
    for path in run.logs.glob(f"rank-*.attempt-{attempt}.error.json"):
        with contextlib.suppress(ValueError, OSError):  # cut while it was written
            records.append(read_json(path))
    where = f"logs: {run.logs}"
    resume = f"ftdist resume {run.path}"
    texts = [_text(path) for path in (log if isinstance(log, list) else [log])]
    # torchrun's report names the first rank to end. Killed, it left no error, and those of the others follow from it.
    reports = [re.search(r"Root Cause.*?host\s*:\s*(\S+).*?rank\s*:\s*(\d+).*?exitcode\s*:\s*-(\d+)", text, re.DOTALL)
               for text in texts]  # fmt: skip
    killed = next((report for report in reports if report and int(report.group(3)) != signal.SIGTERM), None)
    if killed:
        host, rank, number = killed.group(1), int(killed.group(2)), int(killed.group(3))
        who = f"rank {rank}" if host == "localhost" else f"rank {rank} on {host}"
        said = f"{who} was killed by {_signal_name(number)}{_why(number)}{_last_lines(run, rank, attempt)}\n  {where}"
        return LaunchError(said, fix=resume)
    if not killed and (by := next(filter(None, map(KILLED_UNDER_DEEPSPEED.search, texts)), None)):
        where_killed = f" on {by.group(1)}" if by.group(1) else ""
        number = int(by.group(2))
        return LaunchError(
            f"a rank{where_killed} was killed by {_signal_name(number)}{_why(number)}\n  {where}", fix=resume
        )
    if records:
        first = min(records, key=lambda record: record["time"])
        who = f"rank {first['rank']}" + (f" on {first['host']}" if "host" in first else "")
        last = "" if first.get("known", True) else _last_lines(run, first["rank"], attempt)
        error = LaunchError(f"{who}: {first['message']}{last}\n  {where}")
        error.exit_code = int(first.get("exit_code", EXIT_FAILED))
        return error
    if code < 0:
        return LaunchError(f"the ranks were ended by {_signal_name(-code)}\n  {where}", fix=resume)
    found = f"the ranks ended with exit code {code} and left no error" if code else "the ranks ended before the run did"
    return LaunchError(f"{found}{_quoted(''.join(texts))}\n  {where}", fix=resume)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _last_lines(run: RunDir, rank: int, attempt: int) -> str:
    log = run.log_file(rank, attempt)
    text = _text(log)
    return f"\n  the last lines of {log.name}:{_quoted(text)}" if text.strip() else ""


def _quoted(text: str) -> str:
    return "".join(f"\n  | {line}" for line in text.splitlines()[-LAST_LINES:])


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _why(number: int) -> str:
    return ": most often the machine ran out of memory (`dmesg | tail` says)" if number == signal.SIGKILL else ""
