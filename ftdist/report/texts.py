"""Numbers of the report as texts."""

import math
from typing import Any, Dict, Optional, Union


def number(value: Union[float, str, None]) -> str:
    """Return a number as text with three digits. One that is not finite is a text already."""
    if value is None or isinstance(value, str):
        return value or "not known"
    return f"{value:,.3g}" if not 1 <= abs(value) < 1e7 else f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def percent(value: Union[float, str, None]) -> str:
    """Return a share as text; "new" if there was nothing before. One that is not finite is a text already."""
    if not value or isinstance(value, str):
        return "new" if value is None else str(value or 0)
    return f"{100 * value:.3g} %" if value < 10 else f"{100 * value:,.0f} %"


def finite(value: Any) -> Optional[float]:
    """Return a number of the report. None if there is none, or if it is not finite: such numbers are texts in JSON."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def drawable(value: Any) -> float:
    """Return a number of the report for a chart, which leaves out nan."""
    number = finite(value)
    return math.nan if number is None else number


def interval(found: Dict[str, Any], share: bool = False) -> str:
    """Return a number and its interval as text, from a part of ``gain``; the number alone if the interval is not known.

    Args:
        share: The number is a share, and shown in percent.
    """
    value, low, high = (drawable(found[name]) for name in ("value", "low", "high"))
    known = math.isfinite(low) and math.isfinite(high)
    if share:
        return f"{100 * value:.2f} %" + (f" ({100 * low:.2f} to {100 * high:.2f})" if known else "")
    return f"{value:.4f}" + (f" ({low:.4f} to {high:.4f})" if known else "")


def share_with_interval(found: Dict[str, Any]) -> str:
    """Return the share of right answers and its interval as text, in percent."""
    low, share, high = (100 * found[name] for name in ("low", "share", "high"))
    return f"{share:.1f} % ({low:.1f} to {high:.1f})"
