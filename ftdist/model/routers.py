"""The routers of a mixture of experts: what they compute in a forward pass."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, List, Optional, Tuple

import torch
from transformers import PretrainedConfig

COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
ACTIVE = ("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk", "moe_top_k", "top_k_experts")
"""Names in the configs of transformers: the number of experts of a layer, and of those that a token uses."""


class RouterLogits:
    """Collects the logits of all routers in the forward passes over one micro-batch."""

    def __init__(self) -> None:
        self.arguments = {"output_router_logits": True}
        """Arguments of the model's forward."""
        self.logits: List[torch.Tensor] = []
        """One tensor [tokens, experts] for each router and forward pass, without the tokens of padding."""

    def add(self, outputs: Any, real: torch.Tensor) -> None:
        """Add what one forward pass computed.

        Args:
            outputs: The result of the model.
            real: [rows, length] bool: False for padding.
        """
        for logits in outputs.router_logits:
            self.logits.append(logits.reshape(-1, logits.shape[-1])[real.reshape(-1)])


@contextmanager
def without_balance_loss(causal_lm: Any) -> Iterator[None]:
    """Keep transformers from computing its balance loss with the logits of the routers inside a ``with`` block.

    Nothing uses this loss, which is that of one forward pass. The code of gpt_oss that computes it fails if masks are
    given for each kind of layer.
    """
    inner = causal_lm.get_base_model() if hasattr(causal_lm, "get_base_model") else causal_lm  # without PEFT's wrapper
    code, name = sys.modules[type(inner).__module__], "load_balancing_loss_func"
    before = getattr(code, name, None)
    if before is None:
        yield
        return
    setattr(code, name, lambda *args, **kwargs: torch.zeros(()))
    try:
        yield
    finally:
        setattr(code, name, before)


def expert_counts(logits: List[torch.Tensor], active: int) -> torch.Tensor:
    """Return how many tokens the routers send to each expert, [experts] in float64, over all layers together.

    Args:
        logits: [tokens, experts] of each router.
        active: Number of experts for each token.
    """
    counts = torch.zeros(logits[0].shape[-1], dtype=torch.float64, device=logits[0].device)
    for layer in logits:
        chosen = layer.detach().softmax(-1).topk(active, dim=-1).indices
        counts += torch.bincount(chosen.reshape(-1), minlength=len(counts))
    return counts


def probability_sums(logits: List[torch.Tensor]) -> torch.Tensor:
    """Return the sums of the routers' probabilities of each expert over all tokens and layers, [experts] in fp32."""
    return torch.stack([layer.float().softmax(-1).sum(0) for layer in logits]).sum(0)


def has_experts(arch: PretrainedConfig) -> bool:
    """Return whether a model is a mixture of experts."""
    return bool(_first(arch, COUNTS))


def share_of_experts(arch: PretrainedConfig) -> Optional[float]:
    """Return the share of the experts of a layer that a token uses. None: the config does not say it."""
    count, active = _first(arch, COUNTS), _first(arch, ACTIVE)
    known = isinstance(count, int) and isinstance(active, int) and active > 0
    return active / count if known else None


def _first(arch: PretrainedConfig, names: Tuple[str, ...]) -> Any:
    text = arch.get_text_config()
    parts = (text, getattr(text, "ffn_config", None))  # DBRX describes its experts in a config of their own
    return next((value for part in parts for name in names if (value := getattr(part, name, 0))), 0)


def active_experts(causal_lm: Any) -> int:
    """Return the number of experts for each token. Models with images say it in their config only."""
    own = getattr(causal_lm, "num_experts_per_tok", None)
    return int(_first(causal_lm.config, ACTIVE) if own is None else own)
