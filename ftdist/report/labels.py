"""Place the labels of points in a chart, so that none covers another label or a point."""

import math
from dataclasses import dataclass
from typing import Iterator, List, Sequence, Tuple

CHARACTER = 7.4
"""Width of a character in a wide font, for the place that a text needs."""
ASCENT, DESCENT, LINE = 11.0, 3.0, 15.0
"""Height of a text above and below its baseline, and the distance of lines."""
MARK = 5.0
"""Half the size of the mark of a point."""
FAR = 13
"""Maximum number of lines between a point and its label."""
MAX_FAR = 12
"""With more labels than this, those that do not fit beside their points are left out."""

Point = Tuple[float, float]


@dataclass(frozen=True)
class Box:
    """A rectangle in a drawing, whose y grows downwards."""

    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: "Box") -> bool:
        return (self.left < other.right and other.left < self.right
                and self.top < other.bottom and other.top < self.bottom)  # fmt: skip

    def crossed(self, begin: Point, end: Point) -> bool:
        """Return whether a straight line goes through the rectangle."""
        pieces = 1 + int(math.dist(begin, end))
        on_it = ((begin[0] + (end[0] - begin[0]) * n / pieces, begin[1] + (end[1] - begin[1]) * n / pieces)
                 for n in range(pieces + 1))  # fmt: skip
        return any(self.left < x < self.right and self.top < y < self.bottom for x, y in on_it)

    def holds(self, other: "Box") -> bool:
        return (self.left <= other.left and other.right <= self.right
                and self.top <= other.top and other.bottom <= self.bottom)  # fmt: skip


@dataclass(frozen=True)
class Label:
    """A text at its place."""

    text: str
    point: Point
    box: Box
    far: bool
    """Whether a line has to lead from the point to the text."""

    @property
    def baseline(self) -> float:
        return self.box.bottom - DESCENT

    @property
    def end(self) -> Point:
        """The corner of the text that is nearest to its point, where the line ends."""
        x, y = self.point
        return (self.box.left if self.box.left > x else self.box.right,
                self.box.top if self.box.top > y else self.box.bottom)  # fmt: skip


def place_labels(texts: Sequence[Tuple[Point, str]], marks: Sequence[Point], area: Box) -> List[Label]:
    """Return the labels that have a place.

    Each label takes the first place that is inside the area and free: below or above its point, on its right or its
    left, then further away. Lines to far labels cross other labels only if there is no other place. Earlier labels come
    first. So the result depends on the arguments only.

    Args:
        texts: Points and their labels, the most important ones first.
        marks: The points of the chart that are drawn as marks. No label covers them.
    """
    points = [Box(x - MARK, y - MARK, x + MARK, y + MARK) for x, y in marks]
    found: List[Label] = []
    for point, text in texts:
        places = (Label(text, point, box, lines > 0) for box, lines in
                  _places(point, CHARACTER * len(text), FAR if len(texts) <= MAX_FAR else 0))  # fmt: skip
        taken = [*points, *(label.box for label in found)]
        free = [label for label in places
                if area.holds(label.box) and not any(label.box.overlaps(other) for other in taken)]  # fmt: skip
        found += [*(label for label in free if not _line_crosses(label, found)), *free][:1]
    return found


def _line_crosses(label: Label, others: Sequence[Label]) -> bool:
    """Return whether the line to a label goes through one of the others, or the line to one of them through it."""
    return any(one.far and other.box.crossed(one.point, one.end)
               for known in others for one, other in ((label, known), (known, label)))  # fmt: skip


def _places(point: Point, width: float, far: int) -> Iterator[Tuple[Box, int]]:
    """Yield the places of a label, the best one first, with the number of lines between it and its point."""
    (x, y), gap = point, MARK + 1
    for lines in range(far + 1):
        for baseline in (y + LINE * (1 + lines), y - 7 - LINE * lines):
            for left in (x + gap, x - gap - width):
                yield Box(left, baseline - ASCENT, left + width, baseline + DESCENT), lines
