"""The parallel map on worker processes."""

from collections.abc import Iterator

import pytest

from ftdist.base.errors import FtdistError
from ftdist.data import worker_pool
from ftdist.data.worker_pool import IN_FLIGHT_PER_WORKER, ordered_map


def test_only_a_few_items_are_in_memory() -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for number in range(100):
            taken += 1
            yield number

    for fetched, result in enumerate(ordered_map(str, items(), 2)):
        assert result == str(fetched)
        assert taken - fetched <= 2 * IN_FLIGHT_PER_WORKER
    assert taken == 100


def test_a_killed_worker_is_an_error() -> None:
    with pytest.raises(FtdistError, match="was killed"):
        list(ordered_map(worker_pool.os._exit, [1, 1, 1], 2))
