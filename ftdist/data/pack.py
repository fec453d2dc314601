"""Whole documents → rows of at most max_seq_len tokens."""

from typing import Dict, List, Tuple

import numpy as np


def pack(lengths: np.ndarray, max_seq_len: int) -> Tuple[np.ndarray, np.ndarray]:
    """Best-fit decreasing: the longest documents first, each into the fullest row that still has room.

    The rows by remaining space are found in a bit set (one bit for each space from 0 to max_seq_len), so this is
    O(n log n) in documents and the same for the same lengths.

    Args:
        lengths: [n] tokens of each document, 1 to max_seq_len.

    Returns:
        ``(items, row_offsets)``: row r holds the documents ``items[row_offsets[r]:row_offsets[r + 1]]``.
    """
    order = np.argsort(-lengths, kind="stable")
    row_of = np.empty(len(lengths), dtype=np.int64)
    rows_with: Dict[int, List[int]] = {}
    spaces = 0  # bit s is set where a row has s tokens of room
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


def one_each(lengths: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """Padded mode: one document in a row. Returned as by pack."""
    return np.arange(len(lengths), dtype=np.int64), np.arange(len(lengths) + 1, dtype=np.int64)


def _rows(row_of: np.ndarray, order: np.ndarray, num_rows: int) -> Tuple[np.ndarray, np.ndarray]:
    by_row = np.argsort(row_of, kind="stable")
    offsets = np.zeros(num_rows + 1, dtype=np.int64)
    np.cumsum(np.bincount(row_of, minlength=num_rows), out=offsets[1:])
    return order[by_row].astype(np.int64), offsets
