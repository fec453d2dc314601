"""Supervised fine-tuning: the cross-entropy of the trained tokens, as a sum over each micro-batch.

``ftdist.train.loop.train_step`` divides the sum over the global batch by the number of its trained tokens.
"""

from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import torch

from ftdist.model.forward import expert_load
from ftdist.model.routers import RouterLogits
from ftdist.objective.balance import BalanceLoss
from ftdist.objective.base import LossSum, SegmentLosses
from ftdist.objective.head import Head
from ftdist.objective.token_loss import DOCUMENT_METRICS, segment_losses, token_loss


class SupervisedFineTuning:
    """Minimizes the cross-entropy. Each trained token of the global batch has the same weight.

    If each micro-batch were averaged first, tokens in micro-batches with few trained tokens would have more weight.
    """

    metrics: Tuple[str, ...] = ()
    document_metrics: Tuple[str, ...] = DOCUMENT_METRICS

    def __init__(self, vocab_size: int, balance: Optional[BalanceLoss] = None, head: Optional[Head] = None) -> None:
        """
        Args:
            vocab_size: Number of rows of the embedding that are real tokens.
            balance: Balances the load of the experts in training.
            head: The head of the model. None: the loss is computed from the model's own logits.
        """
        self._vocab_size, self._balance, self._head = vocab_size, balance, head
        self._load_metrics: Callable[[], Dict[str, float]] = dict

    def begin_step(self, model: Any, batches: Sequence[Any], total: Callable[[Sequence[float]], List[float]]) -> None:
        load = expert_load(model)
        load.reset()
        self._load_metrics = (lambda: load.metrics(total)) if load else dict
        if self._balance:
            self._balance.begin_step(model, batches, total)

    def end_step(self) -> Dict[str, float]:
        return self._load_metrics() | (self._balance.end_step() if self._balance else {})

    def weight(self, batch: Any) -> int:
        """Return the number of trained tokens of a micro-batch."""
        return int(batch.num_trained)

    def loss(self, model: Any, batch: Any) -> LossSum:
        """Return the sum of the cross-entropies of the trained tokens. In training the balance loss is the penalty."""
        if self._balance is None or not torch.is_grad_enabled():
            return LossSum(token_loss(model, batch, self._vocab_size, self._head))
        routers = RouterLogits()
        loss = token_loss(model, batch, self._vocab_size, self._head, routers)
        return LossSum(loss, penalty=self._balance.share(model, routers))

    def segment_losses(self, model: Any, batch: Any) -> SegmentLosses:
        """Return the sums of the cross-entropies and the metrics of each segment's trained tokens, and their number."""
        return segment_losses(model, batch, self._vocab_size, self._head)
