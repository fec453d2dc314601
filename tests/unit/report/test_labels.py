"""The places of labels: none covers another one or a point, and the same points give the same places."""

import random
from itertools import combinations
from typing import List

import pytest

from ftdist.report.labels import MARK, MAX_FAR, Box, Label, Point, place_labels

AREA = Box(54, 21, 420, 230)


def points(number: int, seed: int) -> List[Point]:
    """Return points that are near to each other, at a border of the area for some seeds."""
    draw = random.Random(seed)
    x, y = draw.uniform(54, 408), draw.uniform(30, 230)
    return [(min(408.0, x + draw.uniform(0, 12)), min(230.0, y + draw.uniform(0, 12))) for _ in range(number)]


def placed(found: List[Point], names: List[str]) -> List[Label]:
    return place_labels(list(zip(found, names, strict=True)), found, AREA)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("number", [2, 8, MAX_FAR, 40])
def test_no_label_covers_another_one_or_a_point_or_leaves_the_area(number: int, seed: int) -> None:
    found, names = points(number, seed), [f"run-{'x' * (n % 9)}-{n}" for n in range(number)]
    labels = placed(found, names)
    assert labels == placed(found, names) and len({label.text for label in labels}) == len(labels)
    for one, other in combinations([label.box for label in labels], 2):
        assert not one.overlaps(other), (one, other)
    marks = [Box(x - MARK, y - MARK, x + MARK, y + MARK) for x, y in found]
    assert not any(label.box.overlaps(mark) for label in labels for mark in marks)
    assert all(AREA.holds(label.box) for label in labels)
    assert len(labels) == number or number > 8
    assert number <= MAX_FAR or not any(label.far for label in labels), "far labels only if there are few"


def test_the_first_label_is_below_its_point_on_the_right_and_at_a_border_elsewhere() -> None:
    [label] = placed([(100, 100)], ["abc"])
    assert (label.box.left, label.baseline, label.far) == (106, 115, False)
    [low] = placed([(100, 229)], ["abc"])
    assert low.baseline < 229 and low.box.left > 100
    [right] = placed([(408, 100)], ["abc"])
    assert right.box.right < 408 and right.baseline > 100


def test_a_line_crosses_no_label_if_there_is_another_place() -> None:
    found: List[Point] = [(248, 108), (239, 98), (247, 102), (282, 107), (285, 100), (281, 107)]
    labels = placed(found, [f"demo-{number}" for number in range(6)])
    lines = [label for label in labels if label.far]
    assert len(labels) == 6 and lines
    assert not any(other.box.crossed(one.point, one.end) for one in lines for other in labels if other is not one)
    assert Box(0, 0, 10, 10).crossed((-5, 5), (15, 6)) and not Box(0, 0, 10, 10).crossed((-5, 5), (5, 15))


def test_a_line_leads_to_the_nearest_corner_of_a_far_label() -> None:
    *near, far = placed([(200, 100)] * 5, ["abc"] * 5)
    assert [label.far for label in near] == [False] * 4 and far.far
    assert far.end == (far.box.left, far.box.top) and far.box.top > max(label.box.bottom for label in near)
