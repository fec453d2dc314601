"""Ask a run to save and stop, wherever it runs."""

from ftdist.launch.attempt import lifecycle
from ftdist.launch.backends.slurm import stop as slurm
from ftdist.run.rundir import RunDir


def ask_to_stop(run: RunDir) -> str:
    """Ask a run for a checkpoint and an end. Returns what was done."""
    return slurm.ask_to_stop(run) if run.read_status().get("job_id") else lifecycle.ask_to_stop(run)
