"""Supervised fine-tuning: the cross-entropy of the trained tokens, as a sum over each micro-batch.

``ftdist.train.loop.train_step`` divides the sum over the global batch by the number of its trained tokens.
"""

from typing import Any, Tuple

from ftdist.objective.base import LossSum
from ftdist.objective.token_loss import token_loss


class SupervisedFineTuning:
    """Minimises the cross-entropy. Each trained token of the global batch has the same weight.

    If each micro-batch were averaged first, tokens in micro-batches with few trained tokens would have more weight.
    """

    metrics: Tuple[str, ...] = ()

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size

    def weight(self, batch: Any) -> int:
        """Return the number of trained tokens of a micro-batch."""
        return int(batch.num_trained)

    def loss(self, model: Any, batch: Any) -> LossSum:
        """Return the sum of the cross-entropies of the trained tokens."""
        return LossSum(token_loss(model, batch, self._vocab_size))
