"""The optimizer Lion, which PyTorch does not have."""

from typing import Any, Callable, Iterable, Optional, Tuple

import torch


class Lion(torch.optim.Optimizer):
    """Moves each weight by the learning rate, against the sign of a momentum.

    With the gradient g, the weight w and the momentum m (0 at first), a step is

        w ← w · (1 − lr · weight_decay) − lr · sign(beta1 · m + (1 − beta1) · g)
        m ← beta2 · m + (1 − beta2) · g

    Source: Chen 2023, Symbolic Discovery of Optimization Algorithms, https://arxiv.org/abs/2302.06675, algorithm 2.
    """

    def __init__(self, params: Iterable[Any], lr: float, betas: Tuple[float, float], weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Optional[Callable[[], float]] = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["exp_avg"] = torch.zeros_like(weight)
                momentum = state["exp_avg"]
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(momentum.lerp(weight.grad, 1 - beta1).sign_(), alpha=-group["lr"])
                momentum.lerp_(weight.grad, 1 - beta2)
