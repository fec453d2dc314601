"""Fit the embedding to the tokenizer: add rows for new special tokens, and padding rows."""

from contextlib import nullcontext
from typing import Any, ContextManager, List

import torch
from transformers import PreTrainedModel


def fit_vocabulary(model: PreTrainedModel, num_known: int, num_tokens: int, pad_to_multiple_of: int) -> int:
    """Enlarge the embedding, and the head if it is not tied, to the number of tokens, then to a padded size.

    New rows are initialized with the mean of the rows of known tokens (Hewitt 2021,
    https://nlp.stanford.edu/~johnhew/vocab-expansion.html).

    Args:
        num_known: Number of tokens without the new special tokens. The new special tokens have the ids ``num_known`` to
            ``num_tokens - 1``. Many models already have unused rows for some of these ids. They are initialized in the
            same way.
        num_tokens: Number of tokens of the tokenizer.
        pad_to_multiple_of: The number of rows is rounded up to a multiple of this.

    Returns:
        The number of rows without padding rows. Padding rows are excluded from the loss and from sampling, and are not
        exported.
    """
    old = model.config.get_text_config().vocab_size
    real = max(old, num_tokens)
    padded = padded_rows(real, pad_to_multiple_of)
    if padded != old:
        model.resize_token_embeddings(padded, mean_resizing=False)
    fresh = [*range(num_known, num_tokens), *range(max(old, num_tokens), padded)]
    if not fresh:
        return real
    known = min(old, num_known)
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    for weight in [embedding] if head is embedding else [embedding, head]:
        with gathered([weight]), torch.no_grad():
            if weight.shape[0]:
                weight[fresh] = weight[:known].float().mean(0).to(weight.dtype)
    bias = getattr(model.get_output_embeddings(), "bias", None)
    if bias is not None:
        with gathered([bias]), torch.no_grad():
            if bias.shape[0]:
                bias[fresh] = bias[:known].float().mean().to(bias.dtype)
    return real


def padded_rows(rows: int, multiple: int) -> int:
    """Return ``rows``, rounded up to a multiple of ``multiple``."""
    return -(-rows // multiple) * multiple


def whole_shape(parameter: torch.Tensor) -> torch.Size:
    """Return the shape of the whole parameter. With ZeRO-3 the tensor itself is empty."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))


def gathered(weights: List[torch.nn.Parameter], changed: bool = True) -> ContextManager[Any]:
    """Context in which the full weights are available under ZeRO-3. Without ZeRO-3 it does nothing.

    Args:
        changed: On leaving the context, write the values of rank 0 to the shards of all ranks. False: the weights are
            only read.
    """
    if not hasattr(weights[0], "ds_id"):
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(weights, modifier_rank=0 if changed else None)
