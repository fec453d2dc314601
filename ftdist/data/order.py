"""The order of rows: a pure function of the seed and the position, so that the loader's whole state is the step."""

from functools import lru_cache
from typing import Tuple

import numpy as np

from ftdist.plan.batch import BatchPlan


def permutation(seed: int, stream: int, count: int) -> np.ndarray:
    """A permutation of ``range(count)``, [count] int64, drawn from (seed, stream).

    By sorting raw PCG64 output: NumPy promises that stream for all its versions, and does not for ``permutation``.
    """
    raw = np.random.PCG64(np.random.SeedSequence([seed, stream])).random_raw(count)
    return np.argsort(raw, kind="stable")


def row_ids(seed: int, num_rows: int, start: int, count: int) -> np.ndarray:
    """Rows ``start … start + count − 1`` of the run's order, [count] int64: every epoch is a permutation of its own.

    Args:
        num_rows: rows in the set, at least 1.
        start: position in the whole run, counted from 0 over all epochs and ranks.
    """
    positions = np.arange(start, start + count)
    epochs = positions // num_rows
    rows = np.empty(count, dtype=np.int64)
    for epoch in np.unique(epochs).tolist():
        here = epochs == epoch
        rows[here] = _epoch_order(seed, epoch, num_rows)[positions[here] % num_rows]
    return rows


def train_rows(step: int, micro_step: int, rank: int, plan: BatchPlan) -> Tuple[int, int]:
    """``(start, count)`` for row_ids: the slice of a step that a rank takes in a micro-step, all from 0."""
    start = step * plan.global_batch_size + (micro_step * plan.dp_world_size + rank) * plan.micro_batch_size
    return start, plan.micro_batch_size


@lru_cache(maxsize=4)
def _epoch_order(seed: int, epoch: int, num_rows: int) -> np.ndarray:
    order = permutation(seed, epoch, num_rows)
    order.setflags(write=False)
    return order
