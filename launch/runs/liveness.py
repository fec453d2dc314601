"""Whether a run is under way: what status.json says, against the machine or Slurm that should know of it."""

import contextlib
import platform
import time
from typing import Any, Dict, Mapping, Optional

import psutil

from ftdist.base.errors import LaunchError
from ftdist.launch.backends.slurm import client
from ftdist.run.rundir import STOPPED

ALIVE = ("queued", "starting", "running")
SILENT_S = 900.0
"""A run on another host that has written no status for this long is shown as perhaps dead."""


def jobs_of(statuses: list[Dict[str, Any]]) -> Optional[Dict[str, client.Job]]:
    """What Slurm says of the jobs of runs that should be under way; None where Slurm cannot be asked."""
    ids = [str(found["job_id"]) for found in statuses if found.get("job_id") and found.get("state") != "done"]
    with contextlib.suppress(LaunchError):
        if ids and client.available():
            return client.find_jobs(ids)
    return None


def liveness(found: Dict[str, Any], jobs: Optional[Mapping[str, client.Job]] = None) -> str:
    """The state that status.json tells, or ``dead?`` where nobody is left to change it."""
    state = str(found.get("state", "?"))
    if found.get("job_id"):
        return _job_liveness(found, state, jobs if jobs is not None else jobs_of([found]))
    if state not in ALIVE:
        return state
    if found.get("host") == platform.node() and found.get("pid"):
        return state if _still_runs(int(found["pid"]), float(found["time"])) else "dead?"
    return "dead?" if time.time() - float(found.get("time", 0)) > SILENT_S else state


def shown_state(found: Dict[str, Any], jobs: Optional[Mapping[str, client.Job]] = None) -> str:
    """The same in a table: what its user has stopped is not called preempted."""
    state = liveness(found, jobs)
    return STOPPED if state == "preempted" and found.get("exit_reason") == STOPPED else state


def _still_runs(pid: int, written: float) -> bool:
    """Whether the process that a status written then names is alive, and is not a later one that was given its number:
    in a container that is started again that is most often this very process."""
    try:
        return psutil.Process(pid).create_time() <= written + 1
    except psutil.Error:
        return False


def _job_liveness(found: Dict[str, Any], state: str, jobs: Optional[Mapping[str, client.Job]]) -> str:
    if state not in (*ALIVE, "preempted") or jobs is None:
        return state
    job = jobs.get(str(found["job_id"]))
    if job is None or job.over:
        return "dead?" if state in ALIVE else state
    return "queued" if job.state in ("PENDING", "REQUEUED") else state if state in ALIVE else "starting"
