"""Start a run as a batch job of Slurm."""

import contextlib
from pathlib import Path
from typing import Dict, List, Mapping, Optional, Sequence

from ftdist.base.errors import EXIT_DONE, LaunchError
from ftdist.base.output import quoted_path
from ftdist.config.launch import Container, LaunchKind
from ftdist.config.schema import RunConfig
from ftdist.launch.attempt.machine import check_torch
from ftdist.launch.backends.base import ALIVE, DEAD, STOPPING, Seen, Status
from ftdist.launch.backends.slurm import answers, client, follow, names, script, stop, submission
from ftdist.launch.backends.slurm.ownership import owned
from ftdist.launch.backends.slurm.resolve import resolve_ranks
from ftdist.run.rundir import SUBMIT, RunDir


class SlurmBackend:
    """A batch job, whose script prepares model and data, starts torchrun on each node, and requeues itself."""

    kind = LaunchKind.slurm
    on_this_machine = False
    uses_scheduler = True

    def resolve(self, config: RunConfig) -> None:
        if resolve_ranks(config.launch):
            names.check_names(config)

    def check_start(self, config: RunConfig) -> None:
        if config.launch.slurm.python is None and config.launch.slurm.container is Container.none:
            check_torch(config.launch)  # the nodes use this environment

    def files(self, config: RunConfig) -> Dict[str, str]:
        return {SUBMIT: script.render(config)}

    def dry_run(self, config: RunConfig, run: RunDir, changed: bool = False) -> str:
        if changed:
            return script.render(config)
        return f"{run.submit.read_text(encoding='utf-8')}\nsubmit it with: {submission.submit_command(run.submit)}"

    def start(self, config: RunConfig, run: RunDir) -> int:
        self.check_start(config)
        with owned(run, submits=True):
            job = submission.submit(run)
        print(f"submitted job {job}", flush=True)
        if config.launch.wait:
            return follow.follow(run, job)
        place = quoted_path(run.path)
        print(f"ftdist status {place}\nftdist logs -f {place}\nftdist cancel {place}")
        return EXIT_DONE

    def states(self, statuses: Sequence[Status]) -> List[Seen]:
        jobs = _find_jobs(statuses)
        return [_seen(status, jobs) for status in statuses]

    def stop(self, run: RunDir, now: bool = False) -> str:
        return stop.end_now(run) if now else stop.ask_to_stop(run)

    def log(self, run: RunDir) -> Optional[Path]:
        path = run.job_log(str(run.read_status().get("job_id")))
        return path if path.is_file() else None


def _find_jobs(statuses: Sequence[Status]) -> Optional[Dict[str, client.Job]]:
    """Return the jobs of the runs that are not done, by id. None if Slurm cannot be queried."""
    ids = [str(status["job_id"]) for status in statuses if status.get("job_id") and status.get("state") != "done"]
    with contextlib.suppress(LaunchError):
        if ids and client.available():
            return client.find_jobs(ids)
    return None


def _seen(status: Status, jobs: Optional[Mapping[str, client.Job]]) -> Seen:
    state = str(status.get("state", "?"))
    if state not in (*ALIVE, "preempted") or jobs is None:
        return Seen(state)
    job = jobs.get(str(status.get("job_id")))
    if job is None or job.over:
        ended = job.describe() if job else f"Slurm no longer knows job {status.get('job_id')}"
        return Seen(DEAD, ended) if state in ALIVE else Seen(state)
    if job.state in ("PENDING", "REQUEUED"):
        return Seen("queued", job.describe())
    if job.state == "COMPLETING" or (state not in ALIVE and _written_by(status, job)):
        return Seen(STOPPING, job.describe())
    # In the state queued, the job has begun and has not yet recorded it.
    return Seen(state if state in ALIVE and state != "queued" else "starting", job.describe())


def _written_by(status: Status, job: client.Job) -> bool:
    """Return whether status.json was written since a job has started, and not by the job's attempt before."""
    began = answers.local_time(job.start)
    return began is not None and float(status.get("time") or 0) > began
