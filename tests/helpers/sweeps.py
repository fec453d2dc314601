"""Sweeps of trials that take seconds, on this machine and under Slurm."""

from pathlib import Path
from typing import List

from ftdist.launch.sweeps.folder import SweepDir
from tests.helpers.runs import BARE

TRIAL = ("experiment=smoke", *BARE, "launch.nproc_per_node=1", "launch.trials_at_once=2",
         "train.precision=fp32", "data.max_seq_len=128", "data.sources.fake.max_documents=100", "train.eval_every=2",
         "train.max_steps=4", "train.checkpoint_every=null", "train.num_samples=0", "train.export=false")  # fmt: skip
"""Settings of a trial; most of its time is the start of its rank."""
DIVERGES = ("optim.schedule=constant", "optim.weight_decay=1e3", "train.max_bad_steps=1", "train.max_rollbacks=0")
"""With these and a learning rate of 1e3 each step multiplies the weights by a million: the trial fails at step 4."""


def only_sweep(folder: Path) -> SweepDir:
    """Return the one sweep in a folder of runs."""
    (path,) = folder.glob("*-sweep")
    return SweepDir(path)


def states(sweep: SweepDir) -> List[str]:
    """Return the state of each trial, in the order of their numbers."""
    return [trial.state for trial in sweep.trials()]
