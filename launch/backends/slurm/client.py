"""Talk to Slurm through its own commands: submit a job, ask about it, cancel it."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Sequence, Set

from ftdist.base.errors import LaunchError
from ftdist.base.output import quoted_path
from ftdist.base.shell import shell_words
from ftdist.config.launch import LaunchKind
from ftdist.launch.backends.slurm import answers
from ftdist.run.rundir import SUBMIT, RunDir

TIMEOUT_S = 60
"""Seconds within which a command of Slurm must answer."""
AGAIN = "run the command again"
LOOKS = 3
"""How many times the queue is searched for a new job after sbatch has printed no job id."""
BETWEEN_LOOKS_S = 0.5
"""Seconds between two of these searches."""
OVER = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "BOOT_FAIL",
        "DEADLINE", "REVOKED"}  # fmt: skip
"""Slurm's names for the states of a job that has ended."""
RUNS = {"RUNNING", "SIGNALING", "COMPLETING", "STAGE_OUT", "RESIZING"}
"""Slurm's names for the states of a job that has a script running, or has just ended."""
REFUSED = (
    (r"partition name|partition specified", "launch.slurm.partition=NAME (sinfo lists the partitions)"),
    (r"account", "launch.slurm.account=NAME (`sacctmgr show associations user=$USER` lists yours)"),
    (r"\bqos\b", "launch.slurm.qos=NAME (`sacctmgr show associations user=$USER format=Account,QOS` lists yours)"),
    (r"time limit", "launch.slurm.time=HH:MM:SS, within the limits that sinfo shows"),
    (r"feature", "launch.slurm.constraint=FEATURE (`sinfo -o '%P %f'` lists the features)"),
    (r"node count|node configuration|cpu count|memory spec|generic resource|\bgres\b",
     "change launch.nnodes, launch.nproc_per_node, launch.slurm.cpus_per_gpu or launch.slurm.mem to what the nodes "
     "have (`sinfo -o '%P %D %c %m %G'`)"),
)  # fmt: skip
"""What sbatch says if it refuses a job, and the setting that helps."""
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
        """Whether its script does not run now, and will. Slurm also has states such as SIGNALING while it runs."""
        return not self.over and self.state not in RUNS

    def describe(self) -> str:
        """Return the job and its state in one line: ``job 7 pending: Resources``."""
        words = f"{self.state.lower()}"
        if self.state == "PENDING":
            words += f": {self.reason}" if self.reason not in ("", "None") else ""
            words += f", expected {self.start.replace('T', ' ')}" if self.start else ""
        return f"job {self.id} {words}"


def run_command(*command: str, check: bool = True) -> str:
    """Return the standard output of one of Slurm's commands.

    Args:
        check: treat a failure as an error.

    Raises:
        LaunchError: Slurm is not installed, does not answer, or refuses the command. The message quotes Slurm's.
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
        raise LaunchError(f"{command[0]} did not answer in {TIMEOUT_S} s", "a running Slurm controller",
                          f"{AGAIN} when `scontrol ping` shows that Slurm is up") from None  # fmt: skip


def _failed(name: str, done: "subprocess.CompletedProcess[str]") -> LaunchError:
    found = _said(name, done)
    if answers.LATE.search(found):
        return LaunchError(f"{name}: {found}", fix=f"{AGAIN} when `scontrol ping` shows that Slurm is up")
    fixes = [fix for pattern, fix in REFUSED if re.search(pattern, found, re.IGNORECASE)]
    fixes.append("change the options of the job in launch.slurm")
    return LaunchError(f"{name}: {found}", fix=fixes[0] if name == "sbatch" else "")


def _said(name: str, done: "subprocess.CompletedProcess[str]") -> str:
    """Return what a command of Slurm wrote to standard error, in one line."""
    said = [re.sub(rf"^(?:{name}: (?:error: )?|allocation failure: )", "", line)
            for line in done.stderr.strip().splitlines()]  # fmt: skip
    return "; ".join(said or [f"exit code {done.returncode}"])


def _squeue(fields: Sequence[str], *options: str) -> List[List[str]]:
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

    The result is empty if it would accept the job or cannot be asked. A reason may also be that no node is free now,
    with which the job would only wait: the caller chooses the reasons that it acts on.
    """
    with contextlib.suppress(LaunchError):
        done = _run("sbatch", "--test-only", *options, "--wrap=true")
        return _said("sbatch", done) if done.returncode != 0 else ""
    return ""


def sbatch(script: Path, *runs: RunDir) -> str:
    """Submit a batch script. Returns the id of the job.

    Args:
        script: the batch script.
        runs: the runs that the job will run. Earlier requests to stop them are removed.

    Raises:
        LaunchError: Slurm refuses the script, or it is not known whether Slurm has accepted it. The message quotes
        Slurm's.
    """
    if mine := _own_defaults():
        print(f"note: the environment variables {', '.join(mine)} are ignored; set job options in launch.slurm",
              file=sys.stderr)  # fmt: skip
    with _saying_resume(script):
        return _sbatch(script, runs)


def _sbatch(script: Path, runs: Sequence[RunDir]) -> str:
    before = jobs_of(script)
    for run in runs:
        run.cancel.unlink(missing_ok=True)
    try:
        answer = run_command("sbatch", "--parsable", str(script))
    except LaunchError as error:
        # The controller may have accepted the job, and only its answer was lost, or a site's wrapper failed afterwards.
        looks = LOOKS if answers.LATE.search(str(error)) else 1
        if (found := find_submitted(script, before, looks)) is None:
            raise
        return found
    found = answers.job_id(answer) or find_submitted(script, before)
    if found is None:
        raise LaunchError(f"sbatch printed no job id, and squeue shows no job of {script}: {answer.strip()!r}",
                          "the id of a submitted job",
                          "if `squeue --me` does not show the job, correct launch.slurm.options")  # fmt: skip
    return found


@contextlib.contextmanager
def _saying_resume(script: Path) -> Iterator[None]:
    """Add to the fix of an error that the run or sweep of a script, whose folder stays, can be submitted again."""
    try:
        yield
    except LaunchError as error:
        resume = f"ftdist resume {quoted_path(script.parent)}"
        if AGAIN in error.fix:
            error.fix = error.fix.replace(AGAIN, resume)
        elif error.fix.startswith(("launch.", "change ")) and script.name == SUBMIT:
            error.fix = f"{resume} {error.fix}" if error.fix[0] == "l" else f"{error.fix}: {resume} KEY=VALUE"
        raise


def submit_command(script: Path) -> str:
    """Return the command that submits a batch script by hand. It unsets the user's variables that would replace
    options in the script."""
    unset = [word for name in _own_defaults() for word in ("-u", name)]
    return shell_words([*(["env", *unset] if unset else []), "sbatch", str(script)])


def _own_defaults() -> List[str]:
    return sorted(name for name in os.environ if name.startswith("SBATCH_"))


def jobs_of(script: Path) -> Set[str]:
    """Return the ids of this user's jobs that run a batch script or wait in the queue with it.

    The script is in the directory of its run or sweep, so jobs of other runs have other scripts. Its path may be
    relative or contain links if a user has submitted it.

    Raises:
        LaunchError: Slurm does not answer.
    """
    wanted = (f"--user={os.getuid()}", "--states=PENDING,CONFIGURING,RUNNING,SUSPENDED")
    rows, place = _squeue(("%i", "%Z", "%o"), *wanted), script.resolve()
    return {job.split("_")[0] for job, folder, command in rows if Path(folder, command).resolve() == place}


def find_submitted(script: Path, before: Set[str], looks: int = LOOKS) -> Optional[str]:
    """Return the id of a job that was submitted although sbatch printed no id. squeue may show it only after a second.

    Args:
        before: ids of earlier jobs of the script.
        looks: number of times that the queue is searched.
    """
    for look in range(looks):
        time.sleep(BETWEEN_LOOKS_S if look else 0)
        with contextlib.suppress(LaunchError):
            if found := jobs_of(script) - before:
                return found.pop()
    return None


def jobs_of_user(user: int) -> Optional[Set[str]]:
    """Return the ids of a user's jobs that wait, run or are about to end. Each element of an array has its own id.

    The result is None if Slurm cannot be asked.

    Args:
        user: number of the user.
    """
    if not available():
        return None
    with contextlib.suppress(LaunchError):
        return {row[0] for row in _squeue(("%i",), f"--user={user}", "--array")}
    return None


def submit(run: RunDir) -> str:
    """Submit the batch script of a run. Returns the id of the job.

    Raises:
        LaunchError: the run has a job already, or ``sbatch`` raised the error.
    """
    with _saying_resume(run.submit):
        there = jobs_of(run.submit)
    if there:
        raise LaunchError(f"job {min(there)} of this run is already queued or running", "a run that has no job",
                          f"wait for it, or end it first: scancel {min(there)}")  # fmt: skip
    job = sbatch(run.submit, run)
    mark_queued(run, job)
    return job


def mark_queued(run: RunDir, job: str) -> None:
    """Write into status.json that a job of the run waits in the queue."""
    if run.read_status().get("state") == "frozen":
        run.write_status(attempt=-1)  # no attempt has begun
    run.write_status(state="queued", backend=LaunchKind.slurm.name, job_id=job, pid=None, exit_reason="", requeues=0,
                     idle=0)  # fmt: skip


def find_jobs(ids: List[str]) -> Dict[str, Job]:
    """Return what Slurm knows about jobs, by id. Slurm forgets jobs some minutes after their end.

    squeue is not asked for the names and comments of jobs. The user chooses them, so they could look like an answer.

    Raises:
        LaunchError: Slurm does not answer.
    """
    found: Dict[str, Job] = {}
    whole = {job.split("_")[0] for job in ids}  # instead of each element of an array
    wanted = "--jobs=" + ",".join(sorted(whole))
    for job, state, reason, start in _squeue(("%i", "%T", "%r", "%S"), "--array", "--states=all", wanted):
        if job in ids:
            found[job] = Job(job, state, reason, "" if start == "N/A" else start)
    return found


@dataclass(frozen=True)
class RunningJob:
    """What a job that runs asks Slurm about itself."""

    over: bool
    end: Optional[float]
    """When Slurm will end it, in seconds since 1970. None if it has no time limit."""
    comment: str


def find_running(job: str) -> Optional[RunningJob]:
    """Return when a job will be ended, and its comment. None if Slurm does not know the job.

    Raises:
        LaunchError: Slurm does not answer.
    """
    for found, state, end, comment in _squeue(("%i", "%T", "%e", "%k"), "--states=all", f"--jobs={job}"):
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
