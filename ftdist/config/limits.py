"""Check that a number of the run config is within its limits."""

from typing import Optional

from ftdist.base.errors import ConfigError


def check_range(name: str, value: Optional[float], low: float, high: float = float("inf")) -> None:
    """Check a setting.

    Args:
        name: The key of the setting.
        value: Its value. null is always allowed.
        low: The lowest value that is allowed.
        high: The highest one.

    Raises:
        ConfigError: The value is not within the limits.
    """
    if value is not None and not low <= value <= high:
        limit = f"at least {low:g}" if high == float("inf") else f"between {low:g} and {high:g}"
        raise ConfigError(f"{name}={value:g}", limit, f"set {name} to a value that is {limit}")
