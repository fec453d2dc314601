"""The interface of a training objective: a loss that is a sum over units, and the number of these units."""

from dataclasses import dataclass, field
from typing import Any, Dict, Protocol, Tuple

import torch


@dataclass(frozen=True)
class LossSum:
    """The loss of one micro-batch as a sum, never a mean: a mean of means would weight short answers too much."""

    loss: torch.Tensor
    """Scalar in fp32: the sum of the losses of the micro-batch's units."""
    metrics: Dict[str, float] = field(default_factory=dict)
    """Sums of the metrics that ``Objective.metrics`` names, over the same units."""


class Objective(Protocol):
    """What training minimises: the sum of ``loss`` over all micro-batches of a step and all ranks, divided by the sum
    of ``weight`` over the same micro-batches."""

    metrics: Tuple[str, ...]
    """Names of the metrics in ``LossSum.metrics``, for instance ``rewards/margin``. Their means are logged under
    them."""

    def weight(self, batch: Any) -> int:
        """Return the number of units in a micro-batch, for instance of trained tokens or of pairs."""

    def loss(self, model: Any, batch: Any) -> LossSum:
        """Run ``model`` on a micro-batch and return its loss.

        ``model`` may be an engine. With ZeRO-3, weights can only be read inside the engine's forward.
        """
