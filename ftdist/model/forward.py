"""The token-weighted loss: the sum of the cross-entropies of trained tokens, and their number.

Dividing is the caller's: the loss of a step is the sum over all micro-steps and ranks divided by the trained tokens of
the whole global batch. A mean per micro-batch, averaged, weights tokens of short answers more than those of long ones.
"""

import inspect
from typing import Any, Protocol

import torch
import torch.nn.functional as F

from ftdist.model.attention import document_kwargs

IGNORED = -100


class Batch(Protocol):
    """A micro-batch: input_ids, labels, position_ids [1, T]; cu_seqlens [n+1] int32."""

    @property
    def input_ids(self) -> torch.Tensor: ...
    @property
    def labels(self) -> torch.Tensor: ...
    @property
    def position_ids(self) -> torch.Tensor: ...
    @property
    def cu_seqlens(self) -> torch.Tensor: ...
    @property
    def max_seqlen(self) -> int: ...


def forward_logits(model: Any, batch: Batch, positions: torch.Tensor) -> torch.Tensor:
    """Logits [len(positions), vocabulary] at some positions of the row: the others' are never computed."""
    causal_lm = getattr(model, "module", model)
    keep = {"logits_to_keep": positions} if _keeps_logits(causal_lm) else {}
    logits = model(
        input_ids=batch.input_ids,
        position_ids=batch.position_ids,
        use_cache=False,  # with a cache transformers drops its own block mask in silence
        **keep,
        **document_kwargs(batch.cu_seqlens, batch.max_seqlen),
    ).logits[0]
    return logits if keep else logits[positions]


def token_loss(model: Any, batch: Batch, vocab_size: int) -> torch.Tensor:
    """Sum of the cross-entropies of the trained tokens of one micro-batch, fp32 scalar.

    Label t is predicted at position t - 1. ``vocab_size`` leaves out rows that only pad the embedding.
    """
    targets = batch.labels[0, 1:]
    positions = (targets != IGNORED).nonzero()[:, 0]
    if not len(positions):
        # A rank without a trained token still runs the model: the others wait for it in ZeRO's collectives.
        first = torch.zeros(1, dtype=torch.long, device=targets.device)
        return forward_logits(model, batch, first).float().sum() * 0.0
    logits = forward_logits(model, batch, positions)[:, :vocab_size]
    return F.cross_entropy(logits.float(), targets[positions], reduction="sum")


def _keeps_logits(causal_lm: torch.nn.Module) -> bool:
    return "logits_to_keep" in inspect.signature(causal_lm.forward).parameters
