"""The order of rows in a run."""

import pytest

from ftdist.data.row_order import permutation, row_ids, train_rows
from ftdist.plan.batch import BatchPlan


def test_each_epoch_is_a_different_permutation_and_any_slice_gives_the_same_order() -> None:
    all_rows = row_ids(7, 10, 0, 35)
    assert [sorted(all_rows[a : a + 10].tolist()) for a in (0, 10, 20)] == [list(range(10))] * 3
    assert all_rows[:10].tolist() != all_rows[10:20].tolist()
    for start in range(35):
        assert row_ids(7, 10, start, 5).tolist() == all_rows[start : start + 5].tolist() or start > 30
    assert row_ids(8, 10, 0, 10).tolist() != all_rows[:10].tolist()
    assert row_ids(7, 10, 10_000_000, 3).tolist() == permutation(7, 1_000_000, 10)[:3].tolist()


def test_the_permutation_never_changes() -> None:
    """A resumed run must use the order it was started with, also with another version of NumPy."""
    assert permutation(0, 0, 8).tolist() == [3, 2, 1, 6, 0, 7, 4, 5]


@pytest.mark.parametrize(("ranks", "micro"), [(1, 1), (1, 4), (2, 2), (4, 3), (8, 1), (12, 2)])
def test_the_rows_of_a_step_do_not_depend_on_the_number_of_ranks(ranks: int, micro: int) -> None:
    accumulation = 24 // (ranks * micro)
    plan = BatchPlan(micro, accumulation, ranks, 128)
    for step in (0, 1, 5):
        taken = [
            row
            for m in range(accumulation)
            for rank in range(ranks)
            for row in row_ids(3, 50, *train_rows(step, m, rank, plan)).tolist()
        ]
        assert taken == row_ids(3, 50, step * 24, 24).tolist()
