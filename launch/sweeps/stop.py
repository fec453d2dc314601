"""Ask a sweep to save and stop, wherever its trials run."""

from ftdist.launch.attempt.signals import SAVES
from ftdist.launch.runs.liveness import ALIVE, liveness
from ftdist.launch.runs.stop import ask_to_stop
from ftdist.launch.sweeps.folder import SweepDir


def stop_sweep(folder: SweepDir) -> str:
    """Ask all trials of a sweep that are under way to stop, and let none of the others start. Returns what was done."""
    folder.cancel.touch()
    for trial in folder.trials():
        if liveness(trial.run.read_status()) in ALIVE:
            ask_to_stop(trial.run)
    return SAVES
