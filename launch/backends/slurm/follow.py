"""Follow a Slurm job to its end: print its state in the queue, then what rank 0 prints. Ctrl-C stops the run."""

import contextlib
import os
import re
import sys
import time
from typing import Dict, List, Optional, Tuple

from ftdist.base.errors import EXIT_DONE, EXIT_FAILED, EXIT_PREEMPTED, LaunchError
from ftdist.base.shell import shell_words
from ftdist.launch.attempt import lifecycle, signals
from ftdist.launch.attempt.companion import stop_run_if_killed
from ftdist.launch.backends.base import ALIVE, Status
from ftdist.launch.backends.slurm import client
from ftdist.launch.backends.slurm.stop import ask_to_stop, end_now
from ftdist.run.rundir import PAUSED, RunDir

POLL_S = 1.0
ASK_S = 3.0
"""Seconds between two queries of Slurm about the same jobs. Its controller serves all users of a cluster."""
LOST_AFTER_S = 30.0
"""Seconds after which a job that Slurm does not know counts as over. Slurm forgets jobs minutes after their end."""
LAST_WORDS = 10000
"""Bytes at the end of a job's log in which its last error is searched."""

SRUN_ENDS = re.compile(r"srun: .*(Exited with exit code|Terminating)")
"""What srun prints about a task that has ended, after the task has said why."""
PYXIS_ENDS = re.compile(r"[Ii]nvoke spank|spank: required|pyxis: (child|container|couldn't|printing)\b"
                        r"|pyxis: +(created|Parallel|\d+ inodes|\[INFO\])|pyxis: *$")  # fmt: skip
"""What pyxis prints around the error of a container that does not start."""
NO_FTDIST = re.compile(
    r"No module named '?ftdist\b|/python[\w.]*: (No such file or directory|Permission denied|not found)"
)


class Tail:
    """Prints what is added to the log of a job."""

    def __init__(self) -> None:
        self._name, self._offset = "", 0

    def show(self, run: RunDir, job: str) -> None:
        """Print what was added to the log since the last call. The log of another job is printed from its beginning."""
        path = run.job_log(job)
        if str(path) != self._name:
            self._name, self._offset = str(path), 0
        with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
            file.seek(self._offset)
            text = file.read()
            self._offset += len(text)
            sys.stdout.write(text.decode(errors="replace"))
            sys.stdout.flush()


class JobWatch:
    """Tells whether jobs are over, even if Slurm has forgotten them, and waits for Slurm if it does not answer."""

    def __init__(self) -> None:
        self._lost: Dict[str, float] = {}
        self._silent = False
        self._asked: Tuple[List[str], float] = ([], 0.0)
        self._answer: Optional[Dict[str, client.Job]] = None

    def find(self, jobs: List[str], now: bool = True) -> Optional[Dict[str, client.Job]]:
        """Return what Slurm knows about jobs, by id. None if it does not answer, which says nothing about the jobs.

        Args:
            jobs: ids of the jobs.
            now: ask Slurm. Otherwise an answer about the same jobs that is younger than ``ASK_S`` is returned again.
        """
        if now or self._asked[0] != jobs or time.monotonic() - self._asked[1] >= ASK_S:
            self._asked, self._answer = (jobs, time.monotonic()), self._ask(jobs)
        return self._answer

    def _ask(self, jobs: List[str]) -> Optional[Dict[str, client.Job]]:
        try:
            found = client.find_jobs(jobs)
        except LaunchError as error:
            if not self._silent:
                print(f"note: {error.found}; asking again until Slurm answers", file=sys.stderr, flush=True)
            self._silent = True
            return None
        self._silent = False
        return found

    def is_over(self, job: str, found: Optional[client.Job]) -> bool:
        """Return whether a job is over.

        Args:
            found: what Slurm knows about the job now.
        """
        if found is not None:
            self._lost.pop(job, None)
            return found.over
        return time.monotonic() - self._lost.setdefault(job, time.monotonic()) > LOST_AFTER_S


def follow(run: RunDir, job: str) -> int:
    """Wait for a job and for the jobs that continue its run. Returns the exit code of the run.

    Raises:
        LaunchError: Slurm ended the job, and the run could not record the reason.
    """
    tail, said, watch = Tail(), "", JobWatch()
    with stop_run_if_killed(run.path), signals.stop_on_signals(lambda: ask_to_stop(run), lambda: end_now(run)):
        while True:
            jobs = watch.find([job], now=run.read_status().get("state") not in ALIVE)
            tail.show(run, job)
            found = jobs.get(job) if jobs is not None else None
            if found is not None and found.waits and found.describe() != said:
                said = found.describe()
                why = before_this(run.read_status())
                print(said + (f" (the run continues; previous attempt: {why})" if why else ""), flush=True)
            if jobs is not None and watch.is_over(job, found):
                tail.show(run, job)
                following = successor(run, job)
                if following is None:
                    return outcome(run, found)
                job = following
            time.sleep(POLL_S)


def before_this(status: Status) -> str:
    """Return why the previous attempt stopped. Empty if there is no previous attempt.

    Args:
        status: the content of status.json before the next attempt has begun.
    """
    went_on = status.get("state") == "preempted" or int(status.get("requeues") or 0) > 0
    return str(status.get("exit_reason") or "") if went_on and int(status.get("attempt", -1)) >= 0 else ""


def successor(run: RunDir, job: str) -> Optional[str]:
    """Return the job that continues the run after this one, if there is one."""
    now = run.read_status().get("job_id")
    return now if now != job else None


def outcome(run: RunDir, job: Optional[client.Job]) -> int:
    """Return the exit code of a run whose job is over. If the run could not record how it ended, this function records
    it.

    Raises:
        LaunchError: Slurm ended the job, and the run could not record the reason.
    """
    status = run.read_status()
    state = status.get("state")
    if state in ("done", PAUSED):
        return EXIT_DONE
    if state == "preempted" or (state == "failed" and status.get("exit_code") is not None):
        return int(status.get("exit_code") or EXIT_PREEMPTED)
    number = status.get("job_id")
    how = f"Slurm ended job {number}: {job.state}" if job else f"Slurm no longer knows job {number}"
    if state == "queued" and run.cancel.exists():
        lifecycle.mark_stopped(run, "cancelled before it began", exit_code=EXIT_PREEMPTED)
        return EXIT_PREEMPTED
    if job and job.state == "FAILED" and (said := _last_words(run, str(number))):
        how += f"; its log says: {said}"
    fix = shell_words(["ftdist", "resume", str(run.path)])
    if NO_FTDIST.search(how):
        fix = ("install ftdist for the job's Python on all nodes (on a shared disk, in a container in its image), or: "
               f"{fix} launch.slurm.python=FILE")  # fmt: skip
    if job and job.state == "FAILED" and not run.job_log(str(number)).exists():
        how += ", and it wrote no log. Perhaps its node does not see the run directory"
        fix = f"a run_dir on a disk that all nodes share and that can be written there, or: {fix}"
    if job and job.state == "TIMEOUT":
        fix += " launch.slurm.stop_before_limit_s=SECONDS (more than before, because the run did not stop in time)"
    error = LaunchError(f"{how}\n  logs: {run.logs}", fix=fix)
    lifecycle.mark_failed(run, error, exit_code=EXIT_FAILED)
    raise error


def _last_words(run: RunDir, job: str) -> str:
    """Return the last line of a job's log that tells of an error, or else the last line. Empty if there is none."""
    try:
        with run.job_log(job).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - LAST_WORDS))
            lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    except OSError:
        return ""
    lines = [line for line in lines if not (SRUN_ENDS.match(line) or PYXIS_ENDS.search(line))]
    return next((line for line in reversed(lines) if "error" in line.lower()), lines[-1] if lines else "")
