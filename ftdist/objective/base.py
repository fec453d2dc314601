"""The interface of a training objective: a loss that is a sum over units, and the number of these units."""

from dataclasses import dataclass, field
from typing import Any, Callable, Dict, List, Optional, Protocol, Sequence, Tuple

import numpy as np
import torch


@dataclass(frozen=True)
class SegmentLosses:
    """The loss of each segment of a micro-batch, for evaluation. A segment is a document or padding."""

    losses: np.ndarray
    """[segments] float64: sums of the losses of the segment's units."""
    weights: np.ndarray
    """[segments] float64: numbers of these units; 0 for padding."""
    token_losses: np.ndarray
    """[tokens] float64: the loss of each token of the micro-batch; 0 for tokens that are not trained."""
    metrics: Dict[str, np.ndarray] = field(default_factory=dict)
    """[segments] float64: sums of the metrics that ``Objective.document_metrics`` names, over the same units."""


@dataclass(frozen=True)
class LossSum:
    """The loss of one micro-batch as a sum, never a mean: a mean of means would weight short answers too much."""

    loss: torch.Tensor
    """Scalar in fp32: the sum of the losses of the micro-batch's units."""
    metrics: Dict[str, float] = field(default_factory=dict)
    """Sums of the metrics that ``Objective.metrics`` names, over the same units."""
    penalty: Optional[torch.Tensor] = None
    """Scalar: this micro-batch's share of a term that is added to the loss of the step. It is not divided by the
    weight, and it is not part of the logged loss."""


class Objective(Protocol):
    """What training minimizes.

    It is the sum of ``loss`` over all micro-batches of a step and all ranks, divided by the sum of ``weight`` over the
    same micro-batches, plus the sum of ``penalty``.
    """

    metrics: Tuple[str, ...]
    """Names of the metrics in ``LossSum.metrics``, for instance ``rewards/margin``. Their means are logged under
    these names."""
    document_metrics: Tuple[str, ...]
    """Names of the metrics in ``SegmentLosses.metrics``. Their means over a held-out set are logged as
    ``eval/<set>/<name>``."""

    def begin_step(self, model: Any, batches: Sequence[Any], total: Callable[[Sequence[float]], List[float]]) -> None:
        """Prepare for the micro-batches of this rank in one optimizer step. Every rank must call it.

        Args:
            total: Returns the sums of some values over all ranks.
        """

    def end_step(self) -> Dict[str, float]:
        """Return metrics of the step that are not means over units. Every rank must call it, before the update."""

    def weight(self, batch: Any) -> int:
        """Return the number of units in a micro-batch, for instance of trained tokens or of pairs."""

    def loss(self, model: Any, batch: Any) -> LossSum:
        """Run ``model`` on a micro-batch and return its loss.

        ``model`` may be an engine. With ZeRO-3, weights can only be read inside the engine's forward.
        """

    def segment_losses(self, model: Any, batch: Any) -> SegmentLosses:
        """Run ``model`` on a micro-batch without gradients, and return the loss and the metrics of each segment.

        Together they are the loss that ``loss`` returns, up to rounding.
        """
