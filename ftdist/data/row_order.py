"""The order in which rows are trained.

The order is a pure function of the seed and the position in the run. So the loader keeps no state: a resumed run needs
only its position to continue with the right rows.
"""

from functools import lru_cache
from typing import Tuple

import numpy as np

from ftdist.plan.batch import BatchPlan


def permutation(seed: int, stream: int, count: int) -> np.ndarray:
    """Return a permutation of ``range(count)`` that depends on ``seed`` and ``stream`` only.

    The permutation sorts raw output of PCG64. NumPy guarantees that this output never changes between versions. It does
    not guarantee this for ``Generator.permutation`` (https://numpy.org/neps/nep-0019-rng-policy.html).

    Returns:
        [count] int64.
    """
    raw = np.random.PCG64(np.random.SeedSequence([seed, stream])).random_raw(count)
    return np.argsort(raw, kind="stable")


def row_ids(seed: int, num_rows: int, start: int, count: int) -> np.ndarray:
    """Return the rows at the positions ``start`` to ``start + count - 1`` of the run.

    Each epoch is a different permutation of all rows.

    Args:
        num_rows: Number of rows in the set, at least 1.
        start: Position in the whole run: the number of rows that all ranks together have taken before, in all epochs.

    Returns:
        [count] int64.
    """
    positions = np.arange(start, start + count)
    epochs = positions // num_rows
    rows = np.empty(count, dtype=np.int64)
    for epoch in np.unique(epochs).tolist():
        here = epochs == epoch
        rows[here] = _epoch_order(seed, epoch, num_rows)[positions[here] % num_rows]
    return rows


def train_rows(step: int, micro_step: int, rank: int, plan: BatchPlan) -> Tuple[int, int]:
    """Return the positions that a rank trains in a micro-step, as ``(start, count)`` for ``row_ids``.

    ``step``, ``micro_step`` and ``rank`` are counted from 0.
    """
    start = step * plan.global_batch_size + (micro_step * plan.dp_world_size + rank) * plan.micro_batch_size
    return start, plan.micro_batch_size


@lru_cache(maxsize=4)
def _epoch_order(seed: int, epoch: int, num_rows: int) -> np.ndarray:
    order = permutation(seed, epoch, num_rows)
    order.setflags(write=False)
    return order
