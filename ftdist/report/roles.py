"""The losses of a held-out set by the role of the message, before and after."""

from typing import Any, Dict, List

import numpy as np

from ftdist.data.loader import PreparedSet
from ftdist.data.roles import ROLES
from ftdist.track.gain import compared


def by_role(dataset: PreparedSet, limits: np.ndarray, before: np.ndarray, after: np.ndarray) -> List[Dict[str, Any]]:
    """Return for each role ``documents``, ``tokens``, and the losses in nats per token with their intervals.

    Args:
        dataset: A held-out set. Without roles, the result is empty.
        limits: From ``ftdist.data.words.kept_limits``.
        before: [tokens] losses at the first evaluation.
        after: The same at the last one.
    """
    if dataset.roles is None:
        return []
    documents = dataset.row_docs[: len(limits) - 1]
    places = np.concatenate([np.arange(*dataset.offsets[[one, one + 1]]) for one in documents])
    numbers = np.repeat(np.arange(len(documents)), np.diff(limits))
    rows = []
    for role, name in enumerate(ROLES):
        own = np.flatnonzero((dataset.roles[places] == role) & (dataset.trained[places] == 1))
        if len(own):
            counts = np.bincount(numbers[own], minlength=len(documents)).astype(np.float64)
            old, new = (np.bincount(numbers[own], losses[own], len(documents)) for losses in (before, after))
            rows.append({"role": name, "documents": int((counts > 0).sum()), "tokens": len(own),
                         **compared(old, new, counts)})  # fmt: skip
    return rows
