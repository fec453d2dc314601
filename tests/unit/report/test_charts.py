"""Axes and charts: round ticks, numbers that cannot be drawn, and what a drawing says to those who do not see it."""

import math
import re
from typing import Any, Dict, List
from xml.etree import ElementTree

import pytest

from ftdist.report.axis import axis_of, tick_label
from ftdist.report.charts import Series, Words, bar_chart, heat_map, xy_chart

NAN = math.nan
WORDS = Words("key", "A <title>", "What & why", "step", "nats")


def read(text: str) -> ElementTree.Element:
    """Return a drawing as XML: so it is well-formed."""
    return ElementTree.fromstring(text)


def texts(text: str) -> List[str]:
    return [one.text or "" for one in read(text).iter("text")]


def paths(text: str, kind: str) -> List[str]:
    return [one.attrib["d"] for one in read(text).iter("path") if kind in one.attrib["class"].split()]


@pytest.mark.parametrize(
    ("values", "how", "labels"),
    [
        ([], {}, ["0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        ([NAN, math.inf], {}, ["0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        ([2.3], {}, ["2.0", "2.2", "2.4", "2.6"]),
        ([2.45, 2.51], {}, ["2.44", "2.46", "2.48", "2.50", "2.52"]),
        ([-0.3, 0.12], {}, ["−0.3", "−0.2", "−0.1", "0", "0.1", "0.2"]),
        ([0, 1234], {"tight": True}, ["0", "250", "500", "750", "1000"]),
        ([0, 60000], {"tight": True}, ["0", "20k", "40k", "60k"]),
        ([5, 6], {"zero": True}, ["0", "2", "4", "6"]),
        ([1e-5, 3e-5], {}, ["1e-05", "1.5e-05", "2e-05", "2.5e-05", "3e-05"]),
        ([], {"log": True}, ["1", "2", "5", "10"]),
        ([0.3, 50, 0, -1, NAN], {"log": True}, ["0.5", "1", "2", "5", "10", "20", "50"]),
        ([1e-6, 1e6], {"log": True}, ["1e-06", "0.001", "1", "1000", "1M"]),
        ([5], {"log": True}, ["2", "5", "10"]),
    ],
)
def test_ticks_are_round_and_hold_all_numbers(values: List[float], how: Dict[str, Any], labels: List[str]) -> None:
    axis = axis_of(values, **how)
    assert axis.labels() == labels
    known = [value for value in values if math.isfinite(value) and not (axis.log and value <= 0)]
    assert all(axis.low <= value <= axis.high for value in known) and axis.low < axis.high
    assert (axis.place(axis.low), axis.place(axis.high)) == (0.0, 1.0)


def test_a_logarithmic_axis_gives_equal_factors_equal_lengths() -> None:
    axis = axis_of([1.0, 100.0], log=True)
    assert axis.place(10.0) == pytest.approx(0.5) and axis_of([1.0, 100.0]).place(10.0) == pytest.approx(0.1)
    assert (tick_label(NAN), tick_label(2.5e9)) == ("nan", "2.5G")


def test_points_are_where_their_numbers_are_and_a_missing_number_interrupts_the_line() -> None:
    drawn = xy_chart(WORDS, [Series("a", [(0, 0), (1, NAN), (2, 2), (4, 4)], [0, 1, NAN, 0.5], ["x", "y", "z", "w"])])
    places = re.findall(r"[\d.]+", paths(drawn, "line")[1])
    assert [float(place) for place in places[::2]] == [52.0, 230.0, 408.0]
    moves = re.findall("[ML]", paths(drawn, "line")[1])
    assert moves == ["M", "M", "L"] and len(paths(drawn, "mark")) == 1 + 3 and len(paths(drawn, "bar")) == 1
    assert {"x", "z", "w"} <= set(texts(drawn)) and "y" not in texts(drawn)


@pytest.mark.parametrize("points", [[], [(1.0, NAN)], [(math.inf, 1.0)]])
def test_a_chart_without_numbers_says_so(points: Any) -> None:
    assert texts(xy_chart(WORDS, [Series("a", points)])) == ["no numbers"] == texts(xy_chart(WORDS, []))
    assert texts(xy_chart(WORDS, [Series("a", [(1.0, 0.0)])], log_y=True)) == ["no numbers"]
    assert texts(bar_chart(WORDS, {"a": NAN, "b": 0.0})) == ["no numbers"]
    assert texts(heat_map(WORDS, ["r"], ["c"], [[None]])) == ["no numbers"]


def test_one_point_is_a_mark_also_on_a_line_without_marks() -> None:
    drawn = xy_chart(WORDS, [Series("a", [(3.0, 2.0)], marks=False)])
    assert len(paths(drawn, "mark")) == 1
    assert not paths(xy_chart(WORDS, [Series("a", [(n, n) for n in range(9)], marks=False)]), "mark")


def test_many_long_names_make_the_drawing_higher_and_not_its_area_smaller() -> None:
    few, many = (read(xy_chart(WORDS, [Series(f"{n}{'x' * 40}", [(0, n), (1, 2)]) for n in range(number)]))
                 for number in (1, 14))  # fmt: skip
    heights = [float(one.attrib["viewBox"].split()[3]) for one in (few, many)]
    areas = [
        next(path.attrib["d"] for path in one.iter("path") if path.attrib["class"] == "axis") for one in (few, many)
    ]
    ends = [list(map(float, re.findall(r"[\d.]+", area)[1:3])) for area in areas]
    assert heights == [270, 270 + 13 * 18] and [low - high for high, low in ends] == [200, 200]


def test_drawings_have_a_name_and_a_description_and_show_names_as_text() -> None:
    hostile = '</text><script>alert("1")</script>\x1b'
    series = [Series(hostile, [(0, 1), (1, 2)], labels=[hostile])]
    for text in (xy_chart(WORDS, series), bar_chart(WORDS, {hostile: 1.0}), heat_map(WORDS, [hostile], ["c"], [[0.5]])):
        root = read(text)
        assert root.attrib["role"] == "img" and root.attrib["aria-labelledby"] == "key-title key-text"
        assert [(root.findtext(name)) for name in ("title", "desc")] == ["A <title>", "What & why"]
        assert "<script" not in text and "\x1b" not in text


def test_the_parts_of_a_bar_have_their_shares_and_numbers() -> None:
    drawn = bar_chart(WORDS, {"queue": 1.0, "steps": 3.0, "none": 0.0, "bad": NAN})
    rects = [one.attrib for one in read(drawn).iter("rect")]
    assert [(float(one["x"]), float(one["width"])) for one in rects[::2]] == [(0.0, 105.0), (105.0, 315.0)]
    assert texts(drawn) == ["1", "1", "queue 25 %", "2", "2", "steps 75 %"]


def test_deeper_cells_moved_more() -> None:
    drawn = heat_map(Words("key", "t", "d", "layer"), ["q", "k"], ["0", "1"], [[0.1, None], [0.0, 0.2]])
    cells = {one.findtext("title"): float(one.attrib["fill-opacity"]) for one in read(drawn).iter("rect")}
    cells.pop(None)  # the scale
    assert cells == {"q, layer 0: 10 %": 0.53, "k, layer 0: 0 %": 0.06, "k, layer 1: 20 %": 1.0}


def test_labels_of_points_of_several_series_have_a_place_each_and_a_line_where_they_are_far() -> None:
    names = [f"20261130-08{number:02}00-demo" for number in range(8)]
    near = [Series("best", [(0.28 + n / 1e4, 0.78) for n in range(4)], labels=names[:4]),
            Series("others", [(0.281 + n / 1e4, 0.78) for n in range(4)], labels=names[4:])]  # fmt: skip
    drawn = xy_chart(WORDS, near, zero=True)
    assert set(names) <= set(texts(drawn)) and len(paths(drawn, "lead")) == 7, "one fits beside the points"
    places = {(one.attrib["x"], one.attrib["y"]) for one in read(drawn).iter("text") if one.text in names}
    assert len(places) == 8 and drawn == xy_chart(WORDS, near, zero=True)
