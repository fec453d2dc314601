"""Muon for the matrices inside a model, and AdamW for the rest: embeddings, output head, norms, biases."""

from typing import Any, Callable, Dict, List, Optional, Set

import torch

MATRICES = "matrices"
"""Entry of a group: whether Muon updates it."""


class MuonAdamW(torch.optim.Optimizer):
    """One optimizer for DeepSpeed that consists of PyTorch's Muon and AdamW. They share its groups and its states.

    The update of a matrix is scaled to the size of an update by AdamW, so that both have the same learning rate and
    weight decay (``match_rms_adamw``; Liu 2025, https://arxiv.org/abs/2502.16982).
    """

    def __init__(self, groups: List[Dict[str, Any]], values: Dict[str, float]) -> None:
        """
        Args:
            groups: Groups of parameters, each with the entry ``MATRICES``.
            values: ``momentum`` of Muon; ``beta1``, ``beta2`` and ``eps`` of AdamW.
        """
        super().__init__(groups, {"lr": 0.0})
        muon, adamw = ([g for g in self.param_groups if g[MATRICES] is kind] for kind in (True, False))
        self._parts: List[torch.optim.Optimizer] = []
        if muon:
            self._parts.append(torch.optim.Muon(
                muon, lr=0.0, momentum=values["momentum"], nesterov=True, adjust_lr_fn="match_rms_adamw"
            ))  # fmt: skip
        if adamw:
            betas = (values["beta1"], values["beta2"])
            self._parts.append(torch.optim.AdamW(adamw, lr=0.0, betas=betas, eps=values["eps"], fused=True))
        for part, shared in zip(self._parts, [groups for groups in (muon, adamw) if groups], strict=True):
            for group, theirs in zip(shared, part.param_groups, strict=True):
                group.update(theirs)
            part.param_groups, part.state = shared, self.state

    @torch.no_grad()
    def step(self, closure: Optional[Callable[[], float]] = None) -> None:  # type: ignore[override]
        for part in self._parts:
            part.step()

    def is_matrix(self, weight: torch.Tensor) -> bool:
        """Return whether Muon updates a tensor of the optimizer."""
        return any(weight is one for group in self.param_groups if group[MATRICES] for one in group["params"])


def embedding_ids(model: Any) -> Set[int]:
    """Return the ids of the matrices that Muon leaves to AdamW: embeddings and the output head."""
    embeddings = [module for module in model.modules() if isinstance(module, torch.nn.Embedding)]
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return {id(p) for module in [*embeddings, *([head] if head is not None else [])] for p in module.parameters()}
