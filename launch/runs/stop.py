"""Ask a run or a sweep to save and stop, wherever it runs."""

from ftdist.base.errors import EXIT_PREEMPTED
from ftdist.launch.attempt import signals
from ftdist.launch.backends.slurm import client
from ftdist.launch.runs.liveness import ALIVE, liveness
from ftdist.launch.sweeps.folder import SweepDir
from ftdist.run.rundir import RunDir


def ask_to_stop(run: RunDir) -> str:
    """Ask a run for a checkpoint and an end. A job that waits in the queue is taken out. Returns what was done."""
    job = run.read_status().get("job_id")
    run.cancel.touch()
    found = client.find_job(str(job)) if job else None
    if found is not None and found.state == "PENDING":
        client.cancel(str(job))
        run.write_status(state="preempted", exit_reason="cancelled in the queue", exit_code=EXIT_PREEMPTED)
        return f"taken out of the queue: {found.describe()}"
    run.preempt.touch()
    return signals.SAVES


def stop_sweep(folder: SweepDir) -> str:
    """Ask all trials of a sweep that are under way, and let none of the others start."""
    folder.cancel.touch()
    for trial in folder.trials():
        if liveness(trial.run.read_status()) in ALIVE:
            ask_to_stop(trial.run)
    return signals.SAVES
