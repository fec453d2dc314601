"""The axes of charts: ranges with round ticks, and the labels of ticks."""

import math
from dataclasses import dataclass
from typing import Iterable, List, Optional, Tuple

STEPS = (1.0, 2.0, 2.5, 5.0, 10.0, 20.0)
"""Distances of round ticks, times a power of ten."""
MAX_TICKS = 6
UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True)
class Axis:
    """A range of numbers with its ticks."""

    low: float
    high: float
    ticks: Tuple[float, ...]
    log: bool = False

    def place(self, value: float) -> float:
        """Return where a number is on the axis, from 0 to 1. It must be finite, and above 0 on a logarithmic axis."""
        low, high, at = (math.log(number) if self.log else number for number in (self.low, self.high, value))
        return min(1.0, max(0.0, (at - low) / (high - low)))

    def labels(self) -> List[str]:
        """Return the label of each tick."""
        gaps = [after - before for before, after in zip(self.ticks, self.ticks[1:], strict=False)]
        return [tick_label(tick, None if self.log else min(gaps, default=None)) for tick in self.ticks]


def axis_of(values: Iterable[float], log: bool = False, tight: bool = False, zero: bool = False) -> Axis:
    """Return an axis that holds some numbers. Those that are not finite, or not above 0 if it is logarithmic, are
    left out.

    Args:
        values: May be empty: the axis is then that from 0 to 1 (from 1 to 10 if it is logarithmic).
        log: Whether equal factors have equal lengths.
        tight: Whether the axis ends at the last number instead of the next tick.
        zero: Whether the axis holds 0.
    """
    known = [value for value in values if math.isfinite(value) and not (log and value <= 0)]
    if zero:
        known.append(0.0)
    if log:
        return _log_axis(*((min(known), max(known)) if known else (1.0, 10.0)))
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # one number: give it room
        room = abs(low) / 10 or 0.5
        low, high = (low if zero else low - room), high + room
    ticks = round_ticks(low, high, tight)
    return Axis(low, high, ticks) if tight else Axis(ticks[0], ticks[-1], ticks)


def round_ticks(low: float, high: float, inside: bool = False) -> Tuple[float, ...]:
    """Return 2 to ``MAX_TICKS`` round numbers with equal distances.

    Args:
        low: Smaller than ``high``.
        inside: Whether all of them are from ``low`` to ``high``. If false, they also enclose the range.
    """
    size = 10 ** math.floor(math.log10((high - low) / (MAX_TICKS - 1)))
    for factor in STEPS:
        step = factor * size
        first, last = (math.ceil, math.floor) if inside else (math.floor, math.ceil)
        begin, end = first(low / step + (-1e-9 if inside else 1e-9)), last(high / step + (1e-9 if inside else -1e-9))
        if end - begin < MAX_TICKS:
            break
    digits = 2 - math.floor(math.log10(step))
    return tuple(round(number * step, digits) + 0.0 for number in range(begin, end + 1))


def tick_label(value: float, step: Optional[float] = None) -> str:
    """Return a number as a short text: 0.05, 2.5, 1200, 50k, 3M, 1e-05.

    Args:
        step: Distance to the next tick, which says how many decimals are needed.
    """
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    if abs(value) < 1e-3:
        return f"{value:.3g}"
    unit, name = next((one for one in UNITS if abs(value) >= max(one[0], 1e4)), (1.0, ""))
    if step is None:
        return f"{value / unit:.4g}{name}"
    decimals = next((n for n in range(6) if math.isclose(step / unit, round(step / unit, n), rel_tol=1e-6)), 6)
    return f"{value / unit:.{decimals}f}{name}".replace("-", "\N{MINUS SIGN}")


def _log_axis(low: float, high: float) -> Axis:
    if high / low < 10:
        middle = math.sqrt(low * high)
        low, high = min(low, middle / math.sqrt(10)), max(high, middle * math.sqrt(10))
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    every = -(-(last - first) // (MAX_TICKS - 1))
    factors = (1, 2, 5) if last - first <= 3 else (1,)
    ticks = [float(f"{factor}e{power}") for power in range(first, last + 1, every) for factor in factors]
    return Axis(low, high, tuple(tick for tick in ticks if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)), log=True)
