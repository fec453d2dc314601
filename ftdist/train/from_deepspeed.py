"""One rank of a run as a script, for DeepSpeed's launcher. Some of its runners can only start files, not modules."""

import os
import sys
import threading

sys.path.pop(0)  # the script's own folder, from which nothing must be imported

from ftdist.base.collector import pause_collector, resume_collector

if __name__ == "__main__":
    pause_collector()

from ftdist.base.errors import EXIT_FAILED
from ftdist.base.output import USER_FOLDER, accept_any_text, show_paths_from
from ftdist.train.main import main

if __name__ == "__main__":
    resume_collector()

RANK_VARIABLES = {
    "RANK": ("OMPI_COMM_WORLD_RANK", "SLURM_PROCID"),
    "LOCAL_RANK": ("OMPI_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID"),
    "WORLD_SIZE": ("OMPI_COMM_WORLD_SIZE", "SLURM_NTASKS"),
}
"""The variables in which mpirun and Slurm give the numbers of a rank. If a Slurm job uses mpirun, the variables of
mpirun are the right ones, so they come first."""


def exit_when_input_closes() -> None:
    """Wait until standard input closes, then end this process.

    It closes when the ssh connection ends, which means that the launcher has ended.
    """
    while os.read(0, 1024):
        pass
    os._exit(EXIT_FAILED)


for name, others in RANK_VARIABLES.items():
    if name not in os.environ:
        os.environ[name] = next(os.environ[other] for other in others if other in os.environ)
if "--watch" in sys.argv:
    sys.argv.remove("--watch")
    threading.Thread(target=exit_when_input_closes, daemon=True).start()
accept_any_text()
show_paths_from(os.environ.get(USER_FOLDER, ""))  # the current folder is the run directory
main(sys.argv[1:])
