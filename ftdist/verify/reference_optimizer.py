"""The reference of every optimizer: PyTorch's own on whole fp32 tensors, or the formula of the paper.

It shares no code with ``ftdist.engine``, and does not know ranks.
"""

from typing import Any, Collection, Dict, FrozenSet, List

import torch

from ftdist.base.errors import FtdistError

USUAL_BETAS = {"adamw": (0.9, 0.95), "lion": (0.9, 0.99), "muon": (0.9, 0.95), "adamw_8bit": (0.9, 0.95)}


def embeddings_and_head(names: Dict[str, torch.nn.Parameter], model: Any) -> FrozenSet[str]:
    """Return the names of the parameters of embeddings and of the output head.

    Args:
        names: The parameters of the model by name.
    """
    owners = [m for m in model.modules() if isinstance(m, torch.nn.Embedding)] + [model.get_output_embeddings()]
    weights = {id(owner.weight) for owner in owners if owner is not None}
    return frozenset(name for name, parameter in names.items() if id(parameter) in weights)


class PlainOptimizer:
    """Updates whole fp32 weights in place."""

    def __init__(self, weights: Dict[str, torch.Tensor], optim: Any, outer: Collection[str] = ()) -> None:
        """
        Args:
            weights: What is trained, by name. Weight decay applies to matrices, not to tensors of one dim.
            optim: The section ``optim`` of the config.
            outer: Names of the embeddings and the output head, which Muon does not update.
        """
        self._weights = weights
        self._parts: List[Any] = []
        for name, weight in weights.items():
            decay = optim.weight_decay if weight.ndim > 1 else 0.0
            part = _build(weight, optim, decay, weight.ndim == 2 and name not in outer)
            ratio = optim.lora_plus_ratio or 1.0
            part.lr_ratio = ratio if "lora_B" in name or "lora_embedding_B" in name else 1.0
            self._parts.append(part)

    def step(self, gradients: Dict[str, torch.Tensor], lr: float) -> None:
        """Make one update of the weights that have a gradient."""
        for name, gradient in gradients.items():
            self._weights[name].grad = gradient
        for part in self._parts:
            for group in part.param_groups:
                group["lr"] = lr * part.lr_ratio
            part.step()
            part.zero_grad()


def _build(weight: torch.Tensor, optim: Any, decay: float, inner_matrix: bool) -> Any:
    """Return an optimizer for one weight.

    Raises:
        FtdistError: The optimizer has no reference.
    """
    kind = optim.optimizer.name
    if kind == "adafactor":
        return torch.optim.Adafactor([weight], lr=0.0, weight_decay=decay, foreach=False)
    if kind == "muon" and inner_matrix:
        momentum = 0.95 if optim.momentum is None else optim.momentum
        return torch.optim.Muon([weight], lr=0.0, momentum=momentum, weight_decay=decay,
                                adjust_lr_fn="match_rms_adamw")  # fmt: skip
    if kind == "sgd":
        momentum = 0.9 if optim.momentum is None else optim.momentum
        return torch.optim.SGD([weight], lr=0.0, momentum=momentum, weight_decay=decay, foreach=False)
    if kind not in USUAL_BETAS:
        raise FtdistError(f"optim.optimizer={kind} has no reference, so there is nothing to compare its numbers with",
                          f"a branch for it in {__name__}", "add one, or use another optimizer")  # fmt: skip
    usual = USUAL_BETAS[kind]
    betas = (usual[0] if optim.beta1 is None else optim.beta1, usual[1] if optim.beta2 is None else optim.beta2)
    if kind == "lion":
        return _Lion(weight, betas[0], betas[1], decay)
    eps = 1e-8 if optim.eps is None else optim.eps
    if kind == "adamw_8bit":
        import bitsandbytes

        return bitsandbytes.optim.AdamW8bit([weight], lr=0.0, betas=betas, eps=eps, weight_decay=decay)
    return torch.optim.AdamW([weight], lr=0.0, betas=betas, eps=eps, weight_decay=decay, foreach=False)


class _Lion:
    """Algorithm 2 of https://arxiv.org/abs/2302.06675, line by line."""

    def __init__(self, weight: torch.Tensor, beta1: float, beta2: float, decay: float) -> None:
        self.weight, self.beta1, self.beta2, self.decay = weight, beta1, beta2, decay
        self.momentum = torch.zeros_like(weight)
        self.param_groups = [{"lr": 0.0}]

    def step(self) -> None:
        g, lr = self.weight.grad, self.param_groups[0]["lr"]
        if g is None:
            return
        c = torch.lerp(self.momentum, g, 1 - self.beta1)  # rounds once, as in ftdist: a sign depends on rounding
        self.weight -= lr * (torch.sign(c) + self.decay * self.weight)
        self.momentum = self.beta2 * self.momentum + (1 - self.beta2) * g

    def zero_grad(self) -> None:
        self.weight.grad = None
