"""The verb ``_report_job``, which runs beside the ranks of a Slurm job. It tells the ranks when Slurm will end the job,
and Slurm how far the run is: squeue shows this as the job's comment (``squeue --me -O JobID,Comment:60``).
"""

import argparse
import signal
import time
from typing import Optional

from ftdist.base.errors import EXIT_DONE, LaunchError
from ftdist.base.process import end_with_parent
from ftdist.base.temporary import temporary_path
from ftdist.config.frozen import load_config
from ftdist.launch.backends.base import Status
from ftdist.launch.backends.slurm import client
from ftdist.run.rundir import RunDir

EVERY_S = 60.0
"""Seconds between two queries of Slurm, and between two comments. Sites ask users not to call its commands often."""
MARK = "ftdist: "
"""How each of our comments begins. A comment that begins otherwise is the user's or the site's, and is kept."""


def add_report_job_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", metavar="RUN_DIR")
    parser.add_argument("--job", required=True, help="id of the job")
    parser.add_argument("--every", type=float, default=EVERY_S, help="seconds between two reports")


def report_job(args: argparse.Namespace) -> int:
    """Report until the job ends. Where Slurm cannot be queried, end at once and say nothing."""
    end_with_parent(signal.SIGKILL)  # the batch script
    run = RunDir.open(args.run_dir)
    comments = not any(option.startswith("--comment") for option in load_config(run.config).launch.slurm.options)
    said = ""
    while client.available():
        job = _ask(args.job)
        if job is not None:
            if job.over:
                break
            write_deadline(run, job.end)
            text = describe(run.read_status())
            if comments and text != said and (not job.comment or job.comment.startswith(MARK)):
                said, comments = text, client.set_comment(args.job, text)
        time.sleep(args.every)
    return EXIT_DONE


def _ask(job: str) -> Optional[client.RunningJob]:
    try:
        return client.find_running(job)
    except LaunchError:  # the controller does not answer; it is asked again later
        return None


def write_deadline(run: RunDir, end: Optional[float]) -> None:
    """Write when Slurm will end the job, in seconds since 1970, into the run directory. None: the job has no limit."""
    if end is None:
        run.deadline.unlink(missing_ok=True)
        return
    temporary = temporary_path(run.deadline)
    temporary.write_text(f"{end:.0f}\n", encoding="utf-8")
    temporary.replace(run.deadline)


def describe(status: Status) -> str:
    """Return how far a run is, as a comment: plain characters on one line."""
    if status.get("loss") is None:
        return MARK + str(status.get("state", "starting"))
    return f"{MARK}step {status.get('step')}/{status.get('max_steps')} loss {status['loss']:.4f}"
