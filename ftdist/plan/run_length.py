"""How many optimizer steps a run has, and whether its learning rate schedule fits into them. [light]"""

import math

from ftdist.base.errors import ConfigError
from ftdist.config.schema import RunConfig


def num_steps(config: RunConfig, rows: int) -> int:
    """Return the optimizer steps of a run: ``train.max_steps``, or ``train.epochs`` passes over the training rows.

    Rows are counted over all epochs together, so only the last step of the run may take rows beyond them.

    Args:
        rows: rows of the packed training set, one epoch.
    """
    if config.train.max_steps:
        return config.train.max_steps
    return math.ceil((config.train.epochs or 0) * rows / config.batch.global_batch_size)


def check_schedule_fits(config: RunConfig, rows: int) -> None:
    """Check that warm-up and decay fit into a run that counts epochs: its steps are known once the data is packed.

    Raises:
        ConfigError: they take more steps than the run has.
    """
    optim, epochs = config.optim, config.train.epochs
    if epochs is None:
        return
    steps = num_steps(config, rows)
    if optim.warmup_steps + optim.decay_steps > steps:
        raise ConfigError(
            f"the run has {steps} steps ({rows} rows × {epochs:g} epochs / {config.batch.global_batch_size} rows a "
            f"step), warm-up and decay take {optim.warmup_steps + optim.decay_steps}",
            "warm-up and decay that fit into the run",
            f"optim.warmup_steps={steps // 10}" + (f" optim.decay_steps={steps // 10}" if optim.decay_steps else ""),
        )
