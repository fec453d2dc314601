"""The section ``report`` of the run config."""

from dataclasses import dataclass
from typing import Optional


@dataclass
class ReportConfig:
    price_per_device_hour: Optional[float] = None
    """What one device (a GPU, or on CPU a rank) costs for an hour, in any currency, for ``ftdist report``. null: not
    known."""
