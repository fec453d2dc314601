"""Numbers about right and wrong answers, against closed forms."""

import pytest

from ftdist.serve.accuracy import Z, accuracy, compare, mcnemar


def test_the_interval_is_that_of_wilson() -> None:
    # The limits p of Wilson solve |share - p| = z sqrt(p (1 - p) / n).
    for correct, count in ((8, 10), (1, 3), (150, 300)):
        found = accuracy([True] * correct + [False] * (count - correct))
        assert (found.correct, found.share) == (correct, correct / count)
        for limit in (found.low, found.high):
            assert abs(found.share - limit) == pytest.approx(Z * (limit * (1 - limit) / count) ** 0.5)
        assert 0 < found.low < found.share < found.high < 1
    none, all_of_them = accuracy([False] * 10), accuracy([True] * 10)
    assert (none.low, all_of_them.high) == (0, 1)
    assert none.high == pytest.approx(Z**2 / (10 + Z**2)) == pytest.approx(1 - all_of_them.low)


@pytest.mark.parametrize(
    ("gained", "lost", "p"),
    [(0, 0, 1), (3, 3, 1), (4, 3, 1), (5, 0, 2 / 32), (0, 5, 2 / 32), (10, 2, 2 * (1 + 12 + 66) / 4096),
     (2000, 0, 2.0**-1999), (1, 9, 22 / 1024)],
)  # fmt: skip
def test_the_test_of_mcnemar_is_exact(gained: int, lost: int, p: float) -> None:
    assert mcnemar(gained, lost) == pytest.approx(p, rel=1e-12, abs=0)


def test_models_are_compared_on_the_same_questions() -> None:
    found = compare([True, True, False, False, False], [True, False, True, True, False])
    assert (found["gained"], found["lost"], found["p"]) == (2, 1, 1)
    assert (found["base"]["correct"], found["run"]["correct"]) == (2, 3)
