"""The number of optimizer steps of a run."""

import math
from fractions import Fraction
from typing import Optional

from ftdist.config.schema import RunConfig


def num_steps(config: RunConfig, rows: int, recorded: Optional[int] = None) -> int:
    """Return the optimizer steps of a run: ``train.max_steps``, or ``train.epochs`` passes over the training rows.

    Rows are counted over all epochs together, so only the last step of the run may use additional rows.

    Args:
        rows: rows of the packed training set, one epoch.
        recorded: ``max_steps`` in the ``status.json`` of a run that has begun. Earlier versions computed in floats,
            which could give one step more. Such a run keeps its number of steps.
    """
    if config.train.max_steps:
        return config.train.max_steps
    epochs, size = config.train.epochs or 0, config.batch.global_batch_size
    in_floats = math.ceil(epochs * rows / size)
    # exact, unlike floats: 1.1 epochs of 100 rows are 110 rows
    return in_floats if recorded == in_floats else math.ceil(Fraction(str(epochs)) * rows / size)
