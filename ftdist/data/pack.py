"""Place whole documents into rows of at most ``max_seq_len`` tokens."""

from typing import Dict, List, Tuple

import numpy as np


def pack(lengths: np.ndarray, max_seq_len: int) -> Tuple[np.ndarray, np.ndarray]:
    """Pack several documents into each row (best-fit decreasing).

    Documents are placed in order of decreasing length, each into the fullest row that still has room for it. A bit set
    with one bit for each number of free tokens (0 to ``max_seq_len``) finds that row, so the time is O(n log n) in the
    number of documents. The same lengths always give the same rows.

    Args:
        lengths: [n] length of each document in tokens, 1 to ``max_seq_len``.

    Returns:
        ``(items, row_offsets)``, [n] and [rows + 1] int64: row r consists of the documents
        ``items[row_offsets[r]:row_offsets[r + 1]]``.
    """
    order = np.argsort(-lengths, kind="stable")
    row_of = np.empty(len(lengths), dtype=np.int64)
    rows_with: Dict[int, List[int]] = {}
    spaces = 0  # bit s is set if some row has s free tokens
    num_rows = 0
    for item, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        fitting = spaces >> length
        if fitting:
            space = length + (fitting & -fitting).bit_length() - 1
            row = rows_with[space].pop()
            if not rows_with[space]:
                spaces ^= 1 << space
        else:
            space, row = max_seq_len, num_rows
            num_rows += 1
        row_of[item] = row
        left = space - length
        rows_with.setdefault(left, []).append(row)
        spaces |= 1 << left
    return _rows(row_of[order], order, num_rows)


def one_per_row(lengths: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """Place each document into a row of its own (``data.packing=false``). Returns the same format as ``pack``."""
    return np.arange(len(lengths), dtype=np.int64), np.arange(len(lengths) + 1, dtype=np.int64)


def _rows(row_of: np.ndarray, order: np.ndarray, num_rows: int) -> Tuple[np.ndarray, np.ndarray]:
    by_row = np.argsort(row_of, kind="stable")
    offsets = np.zeros(num_rows + 1, dtype=np.int64)
    np.cumsum(np.bincount(row_of, minlength=num_rows), out=offsets[1:])
    return order[by_row].astype(np.int64), offsets
