"""One rank as a script, for DeepSpeed's launcher: some of its runners start files and no modules."""

import os
import sys
import threading

sys.path.pop(0)  # a script's own folder is no place to import from

from ftdist.base.errors import EXIT_FAILED
from ftdist.base.output import show_absolute_paths
from ftdist.train.main import main

NUMBERS = {
    "RANK": ("OMPI_COMM_WORLD_RANK", "SLURM_PROCID"),
    "LOCAL_RANK": ("OMPI_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID"),
    "WORLD_SIZE": ("OMPI_COMM_WORLD_SIZE", "SLURM_NTASKS"),
}
"""What mpirun and Slurm call the numbers of a rank; in a Slurm job mpirun's are those that count."""


def end_with_input() -> None:
    """End when standard input closes: ssh has gone, and with it whoever started this."""
    while os.read(0, 1024):
        pass
    os._exit(EXIT_FAILED)


for name, others in NUMBERS.items():
    if name not in os.environ:
        os.environ[name] = next(os.environ[other] for other in others if other in os.environ)
if "--watch" in sys.argv:
    sys.argv.remove("--watch")
    threading.Thread(target=end_with_input, daemon=True).start()
show_absolute_paths()  # the current folder is the run directory
main(sys.argv[1:])
