"""Which rank is named when ranks block each other."""

from typing import Dict

from ftdist.parallel.collectives import Collectives
from ftdist.train.watchdog import RankPosition, furthest_behind


def test_the_rank_that_has_not_started_the_collective_is_behind() -> None:
    def rank(number: int, begun: Dict[str, int], group: str, waits: bool) -> RankPosition:
        return RankPosition(number, "loop.py:1", Collectives(begun, group, "all_reduce", begun[group], waits))

    waiting, other_waiting = rank(0, {"0": 7, "1": 4}, "0", True), rank(1, {"0": 7, "1": 4}, "0", True)
    late, in_group_1 = rank(2, {"0": 6, "1": 5}, "1", False), rank(3, {"0": 6, "1": 5}, "1", True)
    without_collective = RankPosition(4, "loop.py:1", None)
    assert furthest_behind([waiting, other_waiting]) is None
    assert furthest_behind([waiting, late, other_waiting]) is late
    assert furthest_behind([in_group_1, waiting, late]) is waiting, "it has not started where the first rank waits"
    assert furthest_behind([waiting, without_collective]) == without_collective
