"""Run a causal language model over a micro-batch of documents, in training or in evaluation."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch

from ftdist.model.attention import document_kwargs


class Batch(Protocol):
    """The fields of ``ftdist.data.loader.MicroBatch`` that forward and loss read."""

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
    """Run the model, and return the logits at some positions.

    If the model supports ``logits_to_keep``, other logits are not computed.

    Args:
        model: The model, or an engine.
        batch: The micro-batch of T tokens.
        positions: [n] positions between 0 and T - 1.

    Returns:
        [n, rows of the embedding].
    """
    causal_lm = without_engine(model)
    keep = {"logits_to_keep": positions} if _keeps_logits(causal_lm) else {}
    logits = model(
        input_ids=batch.input_ids,
        position_ids=batch.position_ids,
        use_cache=False,  # with a cache, transformers silently drops its own block mask
        **keep,
        **document_kwargs(batch.cu_seqlens, batch.max_seqlen),
    ).logits[0]
    return logits if keep else logits[positions]


def without_engine(model: Any) -> Any:
    """Return the model of an engine, or the model itself."""
    return getattr(model, "module", model)


@contextmanager
def evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, and afterwards back into the mode that it had before."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _keeps_logits(causal_lm: torch.nn.Module) -> bool:
    return "logits_to_keep" in inspect.signature(causal_lm.forward).parameters
