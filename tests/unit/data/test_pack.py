"""Packing of documents into rows."""

import time
from itertools import pairwise

import numpy as np

from ftdist.data.pack import one_per_row, pack


def chat_lengths(count: int, longest: int) -> np.ndarray:
    """Lengths that are distributed like those of chats: log-normal with a mean of a few hundred tokens."""
    lengths = np.random.default_rng(0).lognormal(5.5, 0.9, count).astype(np.int64)
    return np.clip(lengths, 8, longest)


def test_packing_places_every_document_once_and_fills_the_rows() -> None:
    lengths = chat_lengths(20_000, 2048)
    items, offsets = pack(lengths, 2048)
    assert sorted(items.tolist()) == list(range(20_000))
    used = np.add.reduceat(lengths[items], offsets[:-1])
    assert used.max() <= 2048
    assert lengths.sum() / (2048 * len(used)) >= 0.99


def test_packing_is_best_fit_decreasing() -> None:
    lengths = np.array([2, 6, 5, 4, 3])
    items, offsets = pack(lengths, 10)
    rows = [sorted(items[a:b].tolist()) for a, b in pairwise(offsets)]
    assert rows == [[1, 3], [0, 2, 4]]  # 6+4 and 5+3+2


def test_packing_is_fast_and_deterministic() -> None:
    lengths = chat_lengths(200_000, 2048)
    started = time.process_time()
    first = pack(lengths, 2048)
    assert time.process_time() - started < 6
    assert all(np.array_equal(a, b) for a, b in zip(first, pack(lengths, 2048), strict=True))


def test_packing_handles_no_documents_and_documents_of_full_length() -> None:
    assert [part.tolist() for part in pack(np.array([], dtype=np.int64), 8)] == [[], [0]]
    assert [part.tolist() for part in pack(np.array([8, 8]), 8)] == [[0, 1], [0, 1, 2]]
    assert [part.tolist() for part in one_per_row(np.array([3, 8]))] == [[0, 1], [0, 1, 2]]
