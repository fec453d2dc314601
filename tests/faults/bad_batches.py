"""Batches with a bad loss or gradient. Called in a forked rank, this changes only that process."""

import dataclasses
from typing import Any, Dict, Tuple

BAD: Dict[str, Tuple[float, float]] = {
    "loss": (float("nan"), 1.0), "gradient": (1.0, float("inf")), "spike": (1.0, 1e4),
}  # fmt: skip
"""Factors of a bad batch: of the value of the loss, and of its gradient."""


def make_batches_bad(training: Any, batches: Dict[int, str]) -> None:
    """Make global batches bad on this rank. Keys are their places in the data order, values the kinds in ``BAD``."""
    import torch

    class Spoilt(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, loss: torch.Tensor, value: float, gradient: float) -> torch.Tensor:
            ctx.factor = gradient
            return loss * value

        @staticmethod
        def backward(ctx: Any, grad: torch.Tensor) -> Any:
            return grad * ctx.factor, None, None

    objective_loss, read = training.objective.loss, training.batches.read
    at = [0]

    def watched_read(index: int) -> Any:
        at[0] = index
        return read(index)

    def spoilt_loss(*args: Any) -> Any:
        found = objective_loss(*args)
        if at[0] not in batches:
            return found
        return dataclasses.replace(found, loss=Spoilt.apply(found.loss, *BAD[batches[at[0]]]))

    training.batches.read, training.objective.loss = watched_read, spoilt_loss
