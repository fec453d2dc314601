"""Submit a batch script, and find out whether Slurm has taken it."""

import contextlib
import os
import re
import sys
import time
from pathlib import Path
from typing import Iterator, List, Optional, Sequence, Set

from ftdist.base.errors import LaunchError
from ftdist.base.output import quoted_path
from ftdist.base.shell import shell_words
from ftdist.config.launch import LaunchKind
from ftdist.launch.backends.slurm import answers
from ftdist.launch.backends.slurm.client import WHEN_UP, NoAnswer, Refused, list_jobs, run_command
from ftdist.run.rundir import SUBMIT, RunDir

LOOKS = 3
"""How many times the queue is searched for a new job after sbatch has printed no job id."""
BETWEEN_LOOKS_S = 0.5
"""Seconds between two of these searches."""
REFUSED = (
    (r"partition name|partition specified", "launch.slurm.partition=NAME", "(sinfo lists the partitions)"),
    (r"account", "launch.slurm.account=NAME", "(`sacctmgr show associations user=$USER` lists yours)"),
    (r"\bqos\b", "launch.slurm.qos=NAME", "(`sacctmgr show associations user=$USER format=Account,QOS` lists yours)"),
    (r"time limit", "launch.slurm.time=HH:MM:SS", "(sinfo shows the limits)"),
    (r"feature", "launch.slurm.constraint=FEATURE", "(`sinfo -o '%P %f'` lists the features)"),
    (r"node count|node configuration|cpu count|memory spec|generic resource|\bgres\b", "",
     "change launch.nnodes, launch.nproc_per_node, launch.slurm.cpus_per_gpu or launch.slurm.mem to what the nodes "
     "have (`sinfo -o '%P %D %c %m %G'`)"),
    ("", "", "change the options of the job in launch.slurm"),
)  # fmt: skip
"""What sbatch says if it refuses a job, the setting that helps, and how to choose its value. The first match counts."""


def sbatch(script: Path, *runs: RunDir) -> str:
    """Submit a batch script. Returns the id of the job.

    Args:
        script: the batch script.
        runs: the runs that the job will run. Earlier requests to stop them are removed.

    Raises:
        LaunchError: Slurm refuses the script, or it is not known whether Slurm has accepted it. The message quotes
            Slurm's message.
    """
    if mine := _own_defaults():
        print(f"note: the environment variables {', '.join(mine)} are ignored; set job options in launch.slurm",
              file=sys.stderr)  # fmt: skip
    with _saying_when(script):
        return _sbatch(script, runs)


def _sbatch(script: Path, runs: Sequence[RunDir]) -> str:
    before = jobs_of(script)
    for run in runs:
        run.cancel.unlink(missing_ok=True)
    try:
        answer = run_command("sbatch", "--parsable", str(script))
    except LaunchError as error:
        # The controller may have accepted the job, and only its answer was lost, or a site's wrapper failed afterwards.
        looks = LOOKS if isinstance(error, NoAnswer) else 1
        if (found := find_submitted(script, before, looks)) is None:
            raise (_refused(error.found, script) if isinstance(error, Refused) else error) from None
        return found
    found = answers.job_id(answer) or find_submitted(script, before)
    if found is None:
        raise LaunchError(f"sbatch printed no job id, and squeue shows no job of {script}: {answer.strip()!r}",
                          "the id of a submitted job",
                          "if `squeue --me` does not show the job, correct launch.slurm.options")  # fmt: skip
    return found


def _resume(script: Path) -> str:
    """Return the command that submits the run or sweep of a script again. Its folder stays after a failure."""
    return f"ftdist resume {quoted_path(script.parent)}"


@contextlib.contextmanager
def _saying_when(script: Path) -> Iterator[None]:
    """If Slurm does not answer, raise the error with a fix that names the run or sweep of the script."""
    try:
        yield
    except NoAnswer as error:
        raise NoAnswer(error.found, error.expected, f"{_resume(script)} {WHEN_UP}") from None


def _refused(said: str, script: Path) -> Refused:
    """Return the error for a job that sbatch refuses, with the setting that helps.

    Args:
        said: the message of sbatch.
        script: the batch script. A run can be resumed with another setting, and a sweep keeps its settings.
    """
    setting, how = next((setting, how) for words, setting, how in REFUSED if re.search(words, said, re.IGNORECASE))
    fix = f"{setting} {how}".lstrip()
    if script.name == SUBMIT:
        fix = f"{_resume(script)} {fix}" if setting else f"{how}: {_resume(script)} KEY=VALUE"
    return Refused(said, fix=fix)


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
    rows, place = list_jobs(("%i", "%Z|%o"), *wanted), script.resolve()
    return {job.split("_")[0] for job, found in rows if _holds(found, place)}


def _holds(found: str, place: Path) -> bool:
    """Return whether ``FOLDER|SCRIPT`` is this script. Both may hold a ``|``."""
    words = found.split("|")
    splits = (("|".join(words[:end]), "|".join(words[end:])) for end in range(1, len(words)))
    return any(Path(folder, command).resolve() == place for folder, command in splits)


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


def submit(run: RunDir) -> str:
    """Submit the batch script of a run. Returns the id of the job.

    Raises:
        LaunchError: the run has a job already, or ``sbatch`` raised the error.
    """
    with _saying_when(run.submit):
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
