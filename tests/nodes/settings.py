"""A short run that several machines must repeat, and its losses."""

from typing import List

from ftdist.run.rundir import RunDir
from tests.helpers.runs import BARE

# The same number of threads everywhere: it decides in which order a rank adds numbers.
SHORT = (
    "experiment=smoke", *BARE, "launch.threads_per_rank=1", "launch.device=cpu", "launch.timeout_s=60",
    "train.precision=fp32", "data.max_seq_len=128", "train.num_samples=0", "train.export=false",
)  # fmt: skip
LONG = ("train.max_steps=5000", "optim.schedule=constant", "train.eval_every=null", "train.checkpoint_every=null")
"""Added to ``SHORT``: a run that does not end by itself while a test waits for something."""


def losses(run: RunDir) -> List[float]:
    """Return the training losses of a short run."""
    found = [record["train/loss"] for record in run.read_metrics() if "train/loss" in record]
    assert len(found) == 6
    return found
