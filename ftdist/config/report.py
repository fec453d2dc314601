"""The section ``report`` of the run config."""

from dataclasses import dataclass, field
from typing import Optional


@dataclass
class ForgettingConfig:
    texts: int = 32
    """Number of texts that the base model writes before the first step. At every evaluation, the divergence KL(base ‖
    now) is measured on them. 0: forgetting is not measured."""
    tokens: int = 64
    """Maximum number of tokens that the base model writes in each text."""


@dataclass
class ReportConfig:
    price_per_device_hour: Optional[float] = None
    """What one device (a GPU, or on CPU a rank) costs for an hour, in any currency, for ``ftdist report``. null: not
    known."""
    forgetting: ForgettingConfig = field(default_factory=ForgettingConfig)
    at_end: bool = True
    """Write the report at the end of a run. How far the weights moved is left out, because that needs the whole model;
    ``ftdist report`` adds it."""
