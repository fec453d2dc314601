"""Charts as SVG: pure functions from numbers to text.

A chart library would add megabytes to the page, which must contain everything that it needs, and would need scripts.
The shapes here have classes, and the style of the page (``page_style.py``) gives them colors for light, dark and print.
No reader has to tell colors apart: series also differ in the shape of their points and the dashes of their lines, and
parts have numbers.
"""

import math
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise
from typing import Dict, List, Optional, Sequence, Tuple

from ftdist.report.axis import Axis, axis_of
from ftdist.report.labels import CHARACTER, Box, Point, place_labels
from ftdist.run.sample import printable

WIDTH, HEIGHT = 420, 270
"""Size in units of the drawing. It is shown at about this size in pixels, on a phone a bit smaller."""
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 30, 40
"""Margins of the area of the data."""
STYLES = 6
"""Number of different styles of series. More series begin again."""
FILLS = 8
"""Number of different colors of parts. Each part has a number too."""
MAX_MARKS = 40
"""A line with more points has no marks on it."""


@dataclass(frozen=True)
class Series:
    """A line or a group of points with a name."""

    name: str
    points: Sequence[Point]
    """x and y. A point that is not finite is not drawn, and interrupts the line."""
    errors: Sequence[float] = field(default_factory=tuple)
    """Half the height of the bar at each point; empty for no bars."""
    labels: Sequence[str] = field(default_factory=tuple)
    """A text beside each point; empty for no texts."""
    line: bool = True
    marks: bool = True


@dataclass(frozen=True)
class Words:
    """The texts of a chart."""

    key: str
    """A name that no other chart of the page has, of letters and digits."""
    title: str
    description: str
    """A description of the chart for readers who cannot see it."""
    x: str = ""
    y: str = ""


def xy_chart(words: Words, series: Sequence[Series], log_y: bool = False, zero: bool = False) -> str:
    """Return a chart of lines or points.

    Args:
        series: May be empty or have no finite points: the chart then says so.
        log_y: Whether the axis of y is logarithmic. Values that are not above 0 are then left out.
        zero: Whether both axes hold 0.
    """
    points = [_drawn(one, log_y) for one in series]
    known = [point for found in points for point in found if point is not None]
    bars = [
        point[1] + sign * error for one, found in zip(series, points, strict=True)
        for point, error in zip(found, one.errors, strict=False) if point is not None for sign in (-1, 1)
    ]  # fmt: skip
    if not known:
        return svg(words, HEIGHT, [_text(WIDTH / 2, HEIGHT / 2, "no numbers", "middle")])
    lines = any(one.line for one in series)
    frame = _Frame(axis_of((x for x, _ in known), tight=lines, zero=zero), axis_of([*(y for _, y in known), *bars],
                   log=log_y, zero=zero), TOP + 18 * (_legend_rows(series) - 1))  # fmt: skip
    height = frame.bottom + BOTTOM
    parts = [*_legend(series), *frame.draw(words)]
    drawn = list(enumerate(zip(series, points, strict=True)))
    for number, (one, found) in sorted(drawn, key=lambda entry: entry[1][0].marks):  # thin lines are behind the others
        parts += _draw_series(frame, one, found, number % STYLES)
    return svg(words, height, [*parts, *_labels(frame, series, points)])


def bar_chart(words: Words, parts: Dict[str, float]) -> str:
    """Return one bar that is divided among parts, and a list of the parts with their shares.

    Args:
        parts: Numbers by name. Those that are not above 0 are left out.
    """
    known = {name: value for name, value in parts.items() if math.isfinite(value) and value > 0}
    total = sum(known.values())
    if not total:
        return svg(words, 60, [_text(WIDTH / 2, 34, "no numbers", "middle")])
    drawn, x = [], 0.0
    for number, (name, value) in enumerate(known.items(), 1):
        width, row, column = WIDTH * value / total, (number - 1) // 2, (number - 1) % 2
        style, left, top = f'class="part f{(number - 1) % FILLS}"', 2 + column * WIDTH / 2, 50 + 22 * row
        drawn.append(f'<rect {style} x="{x:.2f}" y="2" width="{width:.2f}" height="36"><title>{_escape(name)}</title>'
                     f'</rect><rect {style} x="{left:.1f}" y="{top}" width="16" height="16"/>')  # fmt: skip
        if width > 2 * CHARACTER:
            drawn.append(_text(x + width / 2, 25, str(number), "middle", 'class="on"'))
        drawn.append(_text(left + 8, top + 12.5, str(number), "middle", 'class="on"'))
        drawn.append(_text(left + 23, top + 12.5, f"{_short(name, 16)} {100 * value / total:.3g} %"))
        x += width
    return svg(words, 54 + 22 * -(-len(known) // 2), drawn)


def heat_map(
    words: Words, rows: Sequence[str], columns: Sequence[str], values: Sequence[Sequence[Optional[float]]]
) -> str:
    """Return a grid of cells. A larger value gives a cell a deeper color.

    Args:
        values: [row][column]. None: there is no value; the cell stays empty.
    """
    known = [value for row in values for value in row if value is not None and math.isfinite(value)]
    if not known:
        return svg(words, 60, [_text(WIDTH / 2, 34, "no numbers", "middle")])
    most, left = max(known), 8 + CHARACTER * max(len(_short(row, 20)) for row in rows)
    width, height, top = (WIDTH - left - 4) / len(columns), 20.0, 8.0
    drawn = []
    for row, (name, line) in enumerate(zip(rows, values, strict=True)):
        y = top + row * height
        drawn.append(_text(left - 6, y + 14, _short(name, 20), "end"))
        for column, value in enumerate(line):
            if value is not None and math.isfinite(value):
                label = f"{name}, {words.x} {columns[column]}: {100 * value:.3g} %"
                drawn.append(f'<rect class="heat" x="{left + column * width:.2f}" y="{y:.1f}" width="{width:.2f}" '
                             f'height="{height - 2:.1f}" fill-opacity="{_depth(value, most):.2f}">'
                             f"<title>{_escape(label)}</title></rect>")  # fmt: skip
    bottom, every = top + len(rows) * height, max(1, math.ceil(len(columns) * 24 / (WIDTH - left)))
    for column in range(0, len(columns), every):
        drawn.append(_text(left + (column + 0.5) * width, bottom + 14, columns[column], "middle"))
    drawn.append(_text(left + (WIDTH - left) / 2, bottom + 32, words.x, "middle"))
    for number in range(6):
        drawn.append(f'<rect class="heat" x="{left + 30 + number * 22:.1f}" y="{bottom + 42:.1f}" width="22" '
                     f'height="12" fill-opacity="{_depth(number * most / 5, most):.2f}"/>')  # fmt: skip
    drawn += [_text(left + 24, bottom + 53, "0", "end"), _text(left + 168, bottom + 53, f"{100 * most:.3g} %")]
    return svg(words, bottom + 62, drawn)


def svg(words: Words, height: float, parts: Sequence[str]) -> str:
    """Return a drawing with its title, and with its description for readers who cannot see it."""
    title, description = f"{words.key}-title", f"{words.key}-text"
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-labelledby="{title} {description}">'
        f'<title id="{title}">{_escape(words.title)}</title>'
        f'<desc id="{description}">{_escape(words.description)}</desc>'
        f"{''.join(parts)}</svg>"
    )


@dataclass(frozen=True)
class _Frame:
    """The area of the data of a chart."""

    x_axis: Axis
    y_axis: Axis
    top: float

    @property
    def bottom(self) -> float:
        """The lower edge. The height of the area does not depend on the length of the list of names above it."""
        return self.top + HEIGHT - TOP - BOTTOM

    def at(self, point: Point) -> Point:
        """Return the place of a point in the drawing."""
        return (LEFT + self.x_axis.place(point[0]) * (WIDTH - LEFT - RIGHT),
                self.bottom - self.y_axis.place(point[1]) * (self.bottom - self.top))  # fmt: skip

    def draw(self, words: Words) -> List[str]:
        """Return the grid, the ticks and the names of the axes."""
        right, bottom, parts = WIDTH - RIGHT, self.bottom, []
        for tick, label in zip(self.y_axis.ticks, self.y_axis.labels(), strict=True):
            y = self.at((self.x_axis.low, tick))[1]
            parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{right}"/>')
            parts.append(_text(LEFT - 6, y + 4, label, "end"))
        for tick, label in zip(self.x_axis.ticks, self.x_axis.labels(), strict=True):
            x = self.at((tick, self.y_axis.low))[0]
            parts.append(f'<path class="grid" d="M{x:.1f} {bottom:g}v5"/>')
            parts.append(_text(min(x, right - CHARACTER * len(label) / 2 + 8), bottom + 18, label, "middle"))
        parts.append(f'<path class="axis" d="M{LEFT} {self.top:g}V{bottom:g}H{right}"/>')
        parts.append(_text((LEFT + right) / 2, bottom + BOTTOM - 6, words.x, "middle"))
        turned = f'transform="rotate(-90 11 {(self.top + bottom) / 2:.1f})"'
        return [*parts, _text(11, (self.top + bottom) / 2, words.y, "middle", turned)]


def _drawn(series: Series, log_y: bool) -> List[Optional[Point]]:
    """Return the points of a series; None for those that cannot be drawn."""
    return [point if all(map(math.isfinite, point)) and not (log_y and point[1] <= 0) else None
            for point in series.points]  # fmt: skip


def _draw_series(frame: _Frame, series: Series, points: Sequence[Optional[Point]], style: int) -> List[str]:
    parts, places = [], [None if point is None else frame.at(point) for point in points]
    if series.line:
        pairs = pairwise([None, *places])
        path = "".join(f"{'M' if before is None else 'L'}{at[0]:.1f} {at[1]:.1f}" for before, at in pairs if at)
        parts.append(f'<path class="line s{style}{"" if series.marks else " thin"}" d="{path}"/>')
    for number, error in enumerate(series.errors):
        if (point := points[number]) is not None and math.isfinite(error) and error > 0:
            (x, low), (_, high) = (frame.at((point[0], point[1] + sign * error)) for sign in (-1, 1))
            parts.append(f'<path class="bar s{style}" d="M{x:.1f} {low:.1f}V{high:.1f}M{x - 3:.1f} {low:.1f}h6'
                         f'M{x - 3:.1f} {high:.1f}h6"/>')  # fmt: skip
    shown = [place for place in places if place is not None]
    if len(shown) == 1 or (series.marks and len(shown) <= MAX_MARKS):
        parts += [_mark(at, style) for at in shown]
    return parts


def _labels(frame: _Frame, series: Sequence[Series], points: Sequence[Sequence[Optional[Point]]]) -> List[str]:
    """Return the labels of all points. The first series is the most important one, and in it the last point."""
    drawn = [[None if point is None else frame.at(point) for point in found] for found in points]
    texts = [(at, _short(label, 24)) for one, places in zip(series, drawn, strict=True)
             for at, label in reversed(list(zip(places, one.labels, strict=False))) if at is not None]  # fmt: skip
    marks = [at for one, places in zip(series, drawn, strict=True) if one.marks for at in places if at is not None]
    parts = []
    for label in place_labels(texts, marks, Box(LEFT + 2, frame.top - 9, WIDTH, frame.bottom)):
        if label.far:
            (x, y), (to_x, to_y) = label.point, label.end
            parts.append(f'<path class="lead" d="M{x:.1f} {y:.1f}L{to_x:.1f} {to_y:.1f}"/>')
        on_the_left = label.box.left < label.point[0]
        parts.append(_text(label.box.right if on_the_left else label.box.left, label.baseline, label.text,
                           "end" if on_the_left else "start", 'class="name"'))  # fmt: skip
    return parts


def _mark(at: Point, style: int) -> str:
    """Return a point. Each style has its own shape: circle, square, triangle, diamond, cross, triangle that hangs."""
    x, y = at
    shape = ("m-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z", "m-3.5-3.5h7v7h-7z", "m0-5l4.6 8h-9.2z", "m0-5l5 5l-5 5l-5-5z",
             "m-4-4l8 8m-8 0l8-8", "m0 5l4.6-8h-9.2z")[style]  # fmt: skip
    return f'<path class="mark s{style}" d="M{x:.1f} {y:.1f}{shape}"/>'


def _legend_places(series: Sequence[Series]) -> List[Tuple[float, int]]:
    """Return x and row of the name of each series."""
    found: List[Tuple[float, int]] = []
    x, row = 4.0, 0
    for one in series:
        width = 40 + CHARACTER * len(_short(one.name, 34))
        if found and x + width > WIDTH:
            x, row = 4.0, row + 1
        found.append((x, row))
        x += width
    return found


def _legend_rows(series: Sequence[Series]) -> int:
    return 1 + max((row for _, row in _legend_places(series)), default=0)


def _legend(series: Sequence[Series]) -> List[str]:
    parts = []
    for number, (one, (x, row)) in enumerate(zip(series, _legend_places(series), strict=True)):
        style, y = number % STYLES, 12 + 18 * row
        if one.line:
            parts.append(f'<path class="line s{style}{"" if one.marks else " thin"}" d="M{x:.1f} {y}h24"/>')
        if one.marks:
            parts.append(_mark((x + 12, y), style))
        parts.append(_text(x + 30, y + 4, _short(one.name, 34)))
    return parts


def _depth(value: float, most: float) -> float:
    return 0.06 + 0.94 * value / most if most else 0.06


def _short(text: str, length: int) -> str:
    """Return a text on one line, cut in its middle if it is too long."""
    text, half = " ".join(printable(text).split()), (length - 1) // 2
    return text if len(text) <= length else f"{text[:half]}…{text[-half:]}"


def _escape(text: str) -> str:
    """Return a text as XML. Characters that control, which XML cannot hold, become their escapes."""
    return escape(printable(text))


def _text(x: float, y: float, text: str, anchor: str = "start", more: str = "") -> str:
    where = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text x="{x:.1f}" y="{y:.1f}"{where}{" " if more else ""}{more}>{_escape(text)}</text>'
