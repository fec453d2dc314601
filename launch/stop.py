"""Ask a run or a sweep to save and stop, wherever it runs."""

from ftdist.errors import EXIT_PREEMPTED
from ftdist.rundir import RunDir

from . import signals, slurm
from .alive import ALIVE, liveness
from .sweeps import SweepDir


def ask_to_stop(run: RunDir) -> str:
    """Ask a run for a checkpoint and an end. A job that waits in the queue is taken out. Returns what was done."""
    job = run.read_status().get("job_id")
    run.cancel.touch()
    found = slurm.find_job(str(job)) if job else None
    if found is not None and found.state == "PENDING":
        slurm.cancel(str(job))
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
