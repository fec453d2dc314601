"""Stop a run that was submitted to Slurm: at its next step, or immediately."""

import contextlib

from ftdist.base.errors import EXIT_PREEMPTED, LaunchError
from ftdist.launch.attempt import lifecycle
from ftdist.launch.backends.slurm import client
from ftdist.run.rundir import RunDir


def ask_to_stop(run: RunDir) -> str:
    """Ask a job to save and end. A job that waits in the queue is removed from it. Returns what was done."""
    job = str(run.read_status().get("job_id"))
    run.cancel.touch()
    found = None
    with contextlib.suppress(LaunchError):  # Slurm does not answer; the ranks see the request without it
        found = client.find_job(job)
    if found is not None and found.state == "PENDING":
        client.cancel(job)
        return _removed(run, job)
    if found is not None and found.state == "COMPLETING":
        return f"job {job} is ending already"
    said = lifecycle.ask_to_stop(run)
    if found is None and run.read_status().get("state") == "queued":
        return f"Slurm does not answer; job {job} stays in the queue, but its run will not begin"
    return said


def end_now(run: RunDir) -> str:
    """End a job without a checkpoint. Returns what was done."""
    job = str(run.read_status().get("job_id"))
    run.cancel.touch()
    found = client.find_job(job)
    client.cancel(job)
    if found is not None and found.state == "PENDING":  # nothing of the run is left that could write this
        return _removed(run, job)
    return f"job {job} was cancelled without saving a checkpoint"


def _removed(run: RunDir, job: str) -> str:
    """Record that a job was removed from the queue. Returns this for the user."""
    begun = int(run.read_status().get("attempt", -1)) >= 0  # in this job before a requeue, or in an earlier job
    lifecycle.mark_stopped(run, "cancelled in the queue", exit_code=EXIT_PREEMPTED)
    return f"job {job} was removed from the queue" + ("" if begun else "; it had not started")
