"""Talk to Slurm through its own commands: run one of them, ask about jobs, cancel them."""

import contextlib
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from typing import Dict, List, Optional, Sequence, Set

from ftdist.base.errors import LaunchError
from ftdist.launch.backends.slurm import answers

TIMEOUT_S = 60
"""Seconds within which a command of Slurm must answer."""
WHEN_UP = "when `scontrol ping` shows that Slurm is up"
OVER = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "BOOT_FAIL",
        "DEADLINE", "REVOKED"}  # fmt: skip
"""Slurm's names for the states of a job that has ended."""
RUNS = {"RUNNING", "SIGNALING", "COMPLETING", "STAGE_OUT", "RESIZING"}
"""Slurm's names for the states of a job that has a script running, or has just ended."""
DEFAULTS = re.compile(r"(SBATCH|SQUEUE|SCANCEL|SCONTROL|SINFO)_|SLURM_(?!CONF|JWT)")
"""Environment variables that change what Slurm's commands do: the user's defaults, and the variables of the job in
which this process runs. sbatch uses them instead of the options in the script, and passes them on to the new job."""


@dataclass(frozen=True)
class Job:
    """What Slurm reports about a job."""

    id: str
    state: str
    reason: str = ""
    start: str = ""
    """When it started or is expected to start, as Slurm writes times. Empty if unknown."""

    @property
    def over(self) -> bool:
        """Whether the job has ended."""
        return self.state in OVER

    @property
    def waits(self) -> bool:
        """Whether its script is not running yet. While a script runs, Slurm also has states such as SIGNALING."""
        return not self.over and self.state not in RUNS

    def describe(self) -> str:
        """Return the job and its state in one line: ``job 7 pending: Resources``."""
        words = f"{self.state.lower()}"
        if self.state == "PENDING":
            words += f": {self.reason}" if self.reason not in ("", "None") else ""
            words += f", expected {self.start.replace('T', ' ')}" if self.start else ""
        return f"job {self.id} {words}"


class NoAnswer(LaunchError):
    """Slurm does not answer, for example because its controller is restarted."""


class Refused(LaunchError):
    """A command of Slurm refuses what it was asked for. The message quotes it."""


def run_command(*command: str, check: bool = True) -> str:
    """Return the standard output of one of Slurm's commands.

    Args:
        check: treat a failure as an error.

    Raises:
        LaunchError: Slurm is not installed, does not answer, or refuses the command. The message quotes Slurm's
        message.
    """
    done = _run(*command)
    if check and done.returncode != 0:
        raise _failed(command[0], done)
    return done.stdout


def _run(*command: str) -> "subprocess.CompletedProcess[str]":
    env = {name: value for name, value in os.environ.items() if not DEFAULTS.match(name)}
    try:
        return subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", timeout=TIMEOUT_S,
                              stdin=subprocess.DEVNULL, env=env)  # fmt: skip
    except FileNotFoundError:
        raise LaunchError(f"there is no {command[0]} on this machine", "a machine with the commands of Slurm",
                          "log in to the cluster, or print the script with --dry-run") from None  # fmt: skip
    except subprocess.TimeoutExpired:
        raise NoAnswer(f"{command[0]} did not answer in {TIMEOUT_S} s", "a running Slurm controller",
                       f"run the command again {WHEN_UP}") from None  # fmt: skip


def _failed(name: str, done: "subprocess.CompletedProcess[str]") -> LaunchError:
    found = f"{name}: {_said(name, done)}"
    if answers.LATE.search(found):
        return NoAnswer(found, fix=f"run the command again {WHEN_UP}")
    return Refused(found)


def _said(name: str, done: "subprocess.CompletedProcess[str]") -> str:
    """Return what a command of Slurm wrote to standard error, in one line."""
    said = [re.sub(rf"^(?:{name}: (?:error: )?|allocation failure: )", "", line)
            for line in done.stderr.strip().splitlines()]  # fmt: skip
    return "; ".join(said or [f"exit code {done.returncode}"])


def list_jobs(fields: Sequence[str], *options: str) -> List[List[str]]:
    """Return the fields of each job that squeue lists. Slurm not knowing a job is an answer, too.

    Raises:
        LaunchError: Slurm does not answer, for example because its controller is restarted.
    """
    done = _run("squeue", "--noheader", f"--format={answers.line_format(*fields)}", *options)
    rows = answers.rows(done.stdout, len(fields))
    if done.returncode != 0 and not rows and "Invalid job id" not in done.stderr:
        raise _failed("squeue", done)
    return rows


def available() -> bool:
    """Return whether Slurm's commands are installed on this machine."""
    return shutil.which("sinfo") is not None


def command_output(*command: str) -> str:
    """Return the standard output of one of Slurm's commands. Empty if it is not there, does not answer, or fails."""
    with contextlib.suppress(LaunchError):
        return run_command(*command)
    return ""


def refusal(options: Sequence[str]) -> str:
    """Return why sbatch would refuse a job with these options. Nothing is submitted.

    The result is empty if it would accept the job or cannot be queried. Slurm may also say that no node is free now.
    Such a job would only wait, so the caller decides which reasons count.
    """
    with contextlib.suppress(LaunchError):
        done = _run("sbatch", "--test-only", *options, "--wrap=true")
        return _said("sbatch", done) if done.returncode != 0 else ""
    return ""


def jobs_of_user(user: int) -> Optional[Set[str]]:
    """Return the ids of a user's jobs that wait, run or are about to end. Each element of an array has its own id.

    The result is None if Slurm cannot be queried.

    Args:
        user: number of the user.
    """
    if not available():
        return None
    with contextlib.suppress(LaunchError):
        return {row[0] for row in list_jobs(("%i",), f"--user={user}", "--array")}
    return None


def find_jobs(ids: List[str]) -> Dict[str, Job]:
    """Return what Slurm knows about jobs, by id. Slurm forgets jobs some minutes after their end.

    squeue is not asked for the names and comments of jobs. The user chooses them, so they could look like an answer.

    Raises:
        LaunchError: Slurm does not answer.
    """
    found: Dict[str, Job] = {}
    whole = {job.split("_")[0] for job in ids}  # instead of each element of an array
    wanted = "--jobs=" + ",".join(sorted(whole))
    for job, state, reason, start in list_jobs(("%i", "%T", "%r", "%S"), "--array", "--states=all", wanted):
        if job in ids:
            found[job] = Job(job, state, reason, "" if start == "N/A" else start)
    return found


@dataclass(frozen=True)
class RunningJob:
    """What Slurm tells a running job about itself."""

    over: bool
    end: Optional[float]
    """When Slurm will end it, in seconds since 1970. None if it has no time limit."""
    comment: str


def find_running(job: str) -> Optional[RunningJob]:
    """Return when a job will be ended, and its comment. None if Slurm does not know the job.

    Raises:
        LaunchError: Slurm does not answer.
    """
    for found, state, end, comment in list_jobs(("%i", "%T", "%e", "%k"), "--states=all", f"--jobs={job}"):
        if found == job:
            return RunningJob(state in OVER, answers.local_time(end), "" if comment == "(null)" else comment)
    return None


def set_comment(job: str, text: str) -> bool:
    """Set the comment of a job. Returns whether the site allows it."""
    with contextlib.suppress(LaunchError):
        run_command("scontrol", "update", f"JobId={job}", f"Comment={text}")
        return True
    return False


def find_job(job: str) -> Optional[Job]:
    """Return what Slurm knows about a job. None if it has forgotten the job.

    Raises:
        LaunchError: Slurm does not answer.
    """
    return find_jobs([job]).get(job)


def cancel(*jobs: str) -> None:
    """End jobs immediately, or remove them from the queue."""
    run_command("scancel", *jobs)
