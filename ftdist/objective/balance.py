"""The balance loss of a mixture of experts: it is small if the experts get equal shares of the tokens.

With E experts it is E · Σ f·P, summed over the experts. f is the number of times that a router chose an expert, and
P is the sum of the routers' probabilities of the expert. Both are divided by the number of tokens · layers. This is the
formula of Fedus et al. 2022 (https://arxiv.org/abs/2101.03961, equations 4 to 6), as transformers computes it: over the
tokens of all layers together.

f and P are computed over the whole global batch, so that the loss does not depend on how the batch is split. The
product is not a sum over micro-batches, but f has no gradient: once f is known, the rest is a sum. With one
micro-batch for each rank, f is summed over the ranks between forward and backward. With several, a step first runs all
of them without gradients.
"""

from typing import Any, Callable, Dict, List, Sequence

import torch

from ftdist.model.forward import Batch, forward_logits, without_engine
from ftdist.model.routers import RouterLogits, active_experts, expert_counts, probability_sums

Total = Callable[[Sequence[float]], List[float]]
"""Returns the sums of some values over all ranks."""
BALANCE = "experts/balance_loss"
"""Name of the metric: the balance loss without its coefficient. If all experts are used equally, it is the number of
experts for each token."""


class BalanceLoss:
    """Adds the balance loss to the loss of a step."""

    def __init__(self, coefficient: float) -> None:
        self._coefficient = coefficient
        self._load: List[float] = []  # counts of each expert over the global batch, and tokens · layers
        self._mean_probabilities: torch.Tensor = torch.zeros(0)
        self._total: Total = list

    def begin_step(self, model: Any, batches: Sequence[Batch], total: Total) -> None:
        """Count how the tokens of the global batch are distributed, if this rank has several micro-batches.

        Dropout and noise of routers draw the same random numbers here and in the training forward that follows.
        """
        self._total, self._load, self._mean_probabilities = total, [], torch.zeros(0)
        if len(batches) == 1:
            return
        load: List[float] = []
        devices = [batch.input_ids.device for batch in batches if batch.input_ids.is_cuda][:1]
        with torch.random.fork_rng(devices), torch.no_grad():
            for batch in batches:
                routers = RouterLogits()
                forward_logits(model, batch, torch.zeros(1, dtype=torch.long, device=batch.input_ids.device), routers)
                mine = self._count(model, routers)
                load = [a + b for a, b in zip(load, mine, strict=True)] if load else mine
        self._load = total(load)

    def share(self, model: Any, routers: RouterLogits) -> torch.Tensor:
        """Return this micro-batch's share of the balance loss of the step, times the coefficient: a scalar in fp32.

        The sum over all micro-batches and ranks is the coefficient times the balance loss.
        """
        if not self._load:
            self._load = self._total(self._count(model, routers))
        *counts, rows = self._load
        frequencies = torch.tensor(counts, dtype=torch.float64, device=routers.logits[0].device) / rows
        probabilities = probability_sums(routers.logits) / rows
        before = self._mean_probabilities
        self._mean_probabilities = probabilities.detach() + (before if len(before) else 0)
        return self._coefficient * len(counts) * (frequencies.float() * probabilities).sum()

    def end_step(self) -> Dict[str, float]:
        """Return the metric of the step, over all ranks."""
        *counts, rows = self._load
        means = self._total(self._mean_probabilities.tolist())
        return {BALANCE: len(counts) * sum(count / rows * mean for count, mean in zip(counts, means, strict=True))}

    @staticmethod
    def _count(model: Any, routers: RouterLogits) -> List[float]:
        counts = expert_counts(routers.logits, active_experts(without_engine(model)))
        return [*counts.tolist(), float(sum(len(layer) for layer in routers.logits))]
