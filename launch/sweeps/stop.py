"""Ask a sweep to stop, wherever its trials run."""

from ftdist.launch.attempt.signals import SAVES
from ftdist.launch.backends.base import ALIVE
from ftdist.launch.backends.registry import backend_of_status
from ftdist.launch.runs.liveness import liveness
from ftdist.launch.sweeps.folder import SweepDir


def stop_sweep(folder: SweepDir) -> str:
    """Ask all trials that are under way to save and end, and start no others. Returns what happens, for the user."""
    folder.cancel.touch()
    for trial in folder.trials():
        status = trial.run.read_status()
        if liveness(status) in ALIVE:
            backend_of_status(status).stop(trial.run)
    return SAVES
