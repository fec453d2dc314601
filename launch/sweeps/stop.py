"""Ask a sweep to stop, wherever its trials run."""

from typing import Dict

from ftdist.launch.backends.base import ALIVE
from ftdist.launch.backends.registry import backend_of_status
from ftdist.launch.runs.liveness import liveness
from ftdist.launch.sweeps.folder import SweepDir


def stop_sweep(folder: SweepDir, now: bool = False) -> Dict[int, str]:
    """Ask all trials that are under way to save and end, and start no others.

    Args:
        now: end the jobs of trials without a checkpoint. Trials of this machine end with the launcher of the sweep.

    Returns:
        What happens to each trial that is under way, for the user, by its number.
    """
    folder.cancel.touch()
    said: Dict[int, str] = {}
    for trial in folder.trials():
        status = trial.run.read_status()
        if liveness(status) in ALIVE:
            backend = backend_of_status(status)
            said[trial.number] = backend.stop(trial.run, now and backend.uses_scheduler)
    return said
