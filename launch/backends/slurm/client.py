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
"""Variables that change what Slurm's commands do: the user's defaults for them, and those of a job that this runs in.
sbatch prefers them to the script's own lines, and hands them on to the job."""


@dataclass(frozen=True)
class Job:
    """A job as Slurm tells of it."""

    id: str
    state: str
    reason: str = ""
    start: str = ""
    """When it started or is expected to, as Slurm writes times; empty where unknown."""

    @property
    def over(self) -> bool:
        return self.state in OVER

    def describe(self) -> str:
        words = f"{self.state.lower()}"
        if self.state == "PENDING":
            words += f": {self.reason}" if self.reason not in ("", "None") else ""
            words += f", expected {self.start.replace('T', ' ')}" if self.start else ""
        return f"job {self.id} {words}"


def run_command(*command: str, check: bool = True) -> Optional[str]:
    """Standard output of one of Slurm's commands; None where it failed and that is no error.

    Raises:
        LaunchError: Slurm is not here, does not answer, or refuses; its own words are shown.
    """
    env = {name: value for name, value in os.environ.items() if not DEFAULTS.match(name)}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, stdin=subprocess.DEVNULL,
                              env=env)  # fmt: skip
    except FileNotFoundError:
        raise LaunchError(f"there is no {command[0]} on this machine", "a machine that submits to Slurm",
                          "log in to the cluster, or look at the script with --dry-run") from None  # fmt: skip
    except subprocess.TimeoutExpired:
        raise LaunchError(f"{command[0]} did not answer in {TIMEOUT_S} s", "a Slurm controller that runs") from None
    if done.returncode == 0:
        return done.stdout
    if not check:
        return None
    said = [re.sub(rf"^{command[0]}: (?:error: )?", "", line) for line in done.stderr.strip().splitlines()]
    raise LaunchError(f"{command[0]}: " + "; ".join(said or [f"exit code {done.returncode}"]))


def available() -> bool:
    return shutil.which("sinfo") is not None


def sbatch(script: Path, *runs: RunDir) -> str:
    """Submit a batch script of runs, which may stop no more for what was asked of them before. Returns the job's id.

    Raises:
        LaunchError: Slurm refuses it; what it says is shown. Or it has submitted nothing.
    """
    if mine := sorted(name for name in os.environ if name.startswith("SBATCH_")):
        print(f"note: not used: {', '.join(mine)}; the job is what launch.slurm says", file=sys.stderr)
    for run in runs:
        run.cancel.unlink(missing_ok=True)
    answer = run_command("sbatch", "--parsable", str(script))
    job = (answer or "").strip().split(";")[0]
    if not job.isdecimal():
        raise LaunchError(f"sbatch printed no job's id: {answer!r}", "a job that is submitted",
                          "look at launch.slurm.options")  # fmt: skip
    return job


def submit(run: RunDir) -> str:
    """Submit the run's own batch script. Returns the job's id."""
    job = sbatch(run.submit, run)
    mark_queued(run, job)
    return job


def mark_queued(run: RunDir, job: str) -> None:
    """The run is in Slurm's hands."""
    if run.read_status().get("state") == "frozen":
        run.write_status(attempt=-1)  # none has begun
    run.write_status(state="queued", backend=LaunchKind.slurm.name, job_id=job, pid=None, exit_reason="", requeues=0)


def find_jobs(ids: List[str]) -> Dict[str, Job]:
    """What Slurm knows of jobs by id: those in the queue, and those that have just left it. Others are left out. Only
    what Slurm itself words is asked for: names and comments are the user's, and may read like anything."""
    found: Dict[str, Job] = {}
    wanted = "--jobs=" + ",".join(sorted({job.split("_")[0] for job in ids}))  # of an array the whole
    options = ("--noheader", "--array", "--states=all", "--format=%i|%T|%r|%S")
    listed = run_command("squeue", *options, wanted, check=False) or ""
    for line in listed.splitlines():
        job, state, reason, start = line.split("|")
        if job in ids:
            found[job] = Job(job, state, reason, "" if start == "N/A" else start)
    return found


def find_job(job: str) -> Optional[Job]:
    """One job; None where Slurm no longer knows it."""
    return find_jobs([job]).get(job)


def cancel(*jobs: str) -> None:
    """End jobs at once, or take them out of the queue."""
    run_command("scancel", *jobs)
