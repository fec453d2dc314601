"""The number of optimizer steps of a run."""

import math

from ftdist.config.schema import RunConfig


def num_steps(config: RunConfig, rows: int) -> int:
    """Return the optimizer steps of a run: ``train.max_steps``, or ``train.epochs`` passes over the training rows.

    Rows are counted over all epochs together, so only the last step of the run may use additional rows.

    Args:
        rows: rows of the packed training set, one epoch.
    """
    if config.train.max_steps:
        return config.train.max_steps
    return math.ceil((config.train.epochs or 0) * rows / config.batch.global_batch_size)
