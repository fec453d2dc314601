"""What an objective is: the loss that training minimises, as a sum whose divisor is known beforehand."""

from dataclasses import dataclass, field
from typing import Any, Dict, Protocol, Tuple

import torch


@dataclass(frozen=True)
class LossSum:
    """The loss of one micro-batch. Sums, never means: a mean of means would weight short answers too much."""

    loss: torch.Tensor
    """Scalar in fp32: the sum of the losses of the micro-batch's units."""
    metrics: Dict[str, float] = field(default_factory=dict)
    """Sums of the metrics that ``Objective.metrics`` names, over the same units."""


class Objective(Protocol):
    """What is minimised: the sum of ``loss`` over all micro-batches of a step and all ranks, divided by the sum of
    ``weight`` over the same."""

    metrics: Tuple[str, ...]
    """Names under which the means of ``LossSum.metrics`` are logged, for instance ``rewards/margin``."""

    def weight(self, batch: Any) -> int:
        """Return the number of units in a micro-batch, for instance trained tokens, or pairs."""

    def loss(self, model: Any, batch: Any) -> LossSum:
        """Return the loss of a micro-batch. It runs ``model``, which may be an engine: with ZeRO-3 a weight can only be
        read inside the engine's forward."""
