"""Talk to Slurm through its own commands: submit a job, ask about it, cancel it."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Optional

from ftdist.base.errors import LaunchError
from ftdist.config.launch import LaunchKind
from ftdist.run.rundir import RunDir

TIMEOUT_S = 60
OVER = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "BOOT_FAIL",
        "DEADLINE", "REVOKED"}  # fmt: skip


DEFAULTS = re.compile(r"(SBATCH|SQUEUE|SCANCEL|SCONTROL|SINFO)_|SLURM_(?!CONF|JWT)")
"""Variables that change what Slurm's commands do: the user's defaults, and the variables of a job in which this process
runs. sbatch prefers them to the options in the script, and passes them on to the job."""


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

    def describe(self) -> str:
        """Return the job and its state in one line: ``job 7 pending: Resources``."""
        words = f"{self.state.lower()}"
        if self.state == "PENDING":
            words += f": {self.reason}" if self.reason not in ("", "None") else ""
            words += f", expected {self.start.replace('T', ' ')}" if self.start else ""
        return f"job {self.id} {words}"


def run_command(*command: str, check: bool = True) -> Optional[str]:
    """Return the standard output of one of Slurm's commands.

    Args:
        check: treat a failure as an error. If not, None is returned.

    Raises:
        LaunchError: Slurm is not installed, does not answer, or refuses; quotes its message.
    """
    env = {name: value for name, value in os.environ.items() if not DEFAULTS.match(name)}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, stdin=subprocess.DEVNULL,
                              env=env)  # fmt: skip
    except FileNotFoundError:
        raise LaunchError(f"there is no {command[0]} on this machine", "a machine with the commands of Slurm",
                          "log in to the cluster, or print the script with --dry-run") from None  # fmt: skip
    except subprocess.TimeoutExpired:
        raise LaunchError(f"{command[0]} did not answer in {TIMEOUT_S} s", "a running Slurm controller") from None
    if done.returncode == 0:
        return done.stdout
    if not check:
        return None
    said = [re.sub(rf"^{command[0]}: (?:error: )?", "", line) for line in done.stderr.strip().splitlines()]
    raise LaunchError(f"{command[0]}: " + "; ".join(said or [f"exit code {done.returncode}"]))


def available() -> bool:
    """Return whether Slurm's commands are installed on this machine."""
    return shutil.which("sinfo") is not None


def sbatch(script: Path, *runs: RunDir) -> str:
    """Submit a batch script. Returns the id of the job.

    Args:
        script: the batch script.
        runs: the runs that the job will run. Earlier requests to stop them are removed.

    Raises:
        LaunchError: Slurm refuses it, or has submitted nothing; quotes its message.
    """
    if mine := sorted(name for name in os.environ if name.startswith("SBATCH_")):
        print(f"note: the environment variables {', '.join(mine)} are ignored; set job options in launch.slurm",
              file=sys.stderr)  # fmt: skip
    for run in runs:
        run.cancel.unlink(missing_ok=True)
    answer = run_command("sbatch", "--parsable", str(script))
    job = (answer or "").strip().split(";")[0]
    if not job.isdecimal():
        raise LaunchError(f"sbatch printed no job id: {answer!r}", "the id of a submitted job",
                          "check launch.slurm.options")  # fmt: skip
    return job


def submit(run: RunDir) -> str:
    """Submit the batch script of a run. Returns the id of the job."""
    job = sbatch(run.submit, run)
    mark_queued(run, job)
    return job


def mark_queued(run: RunDir, job: str) -> None:
    """Write into status.json that a job of the run waits in the queue."""
    if run.read_status().get("state") == "frozen":
        run.write_status(attempt=-1)  # no attempt has begun
    run.write_status(state="queued", backend=LaunchKind.slurm.name, job_id=job, pid=None, exit_reason="", requeues=0)


def find_jobs(ids: List[str]) -> Dict[str, Job]:
    """Return what Slurm knows about jobs, by id. Slurm forgets jobs some minutes after their end.

    Names and comments of jobs are not asked for: the user chooses them, and they could look like any answer.
    """
    found: Dict[str, Job] = {}
    whole = {job.split("_")[0] for job in ids}  # instead of each element of an array
    wanted = "--jobs=" + ",".join(sorted(whole))
    options = ("--noheader", "--array", "--states=all", "--format=%i|%T|%r|%S")
    listed = run_command("squeue", *options, wanted, check=False) or ""
    for line in listed.splitlines():
        job, state, reason, start = line.split("|")
        if job in ids:
            found[job] = Job(job, state, reason, "" if start == "N/A" else start)
    return found


def find_job(job: str) -> Optional[Job]:
    """Return what Slurm knows about a job. None if it has forgotten the job."""
    return find_jobs([job]).get(job)


def cancel(*jobs: str) -> None:
    """End jobs at once, or remove them from the queue."""
    run_command("scancel", *jobs)
