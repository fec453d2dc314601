"""Which rank is to blame when ranks hold each other up."""

from typing import Dict

from ftdist.parallel.collectives import Collectives
from ftdist.train.watchdog import Standing, furthest_behind


def test_whoever_has_not_come_to_the_collective_is_behind() -> None:
    def rank(number: int, begun: Dict[str, int], group: str, waits: bool) -> Standing:
        return Standing(number, "loop.py:1", Collectives(begun, group, "all_reduce", begun[group], waits))

    here, there = rank(0, {"0": 7, "1": 4}, "0", True), rank(1, {"0": 7, "1": 4}, "0", True)
    late, elsewhere = rank(2, {"0": 6, "1": 5}, "1", False), rank(3, {"0": 6, "1": 5}, "1", True)
    assert furthest_behind([here, there]) is None
    assert furthest_behind([here, late, there]) is late
    assert furthest_behind([elsewhere, here, late]) is here, "it has not come to where the first one waits"
    assert furthest_behind([here, Standing(4, "loop.py:1", None)]) == Standing(4, "loop.py:1", None)
