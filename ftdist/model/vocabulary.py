"""Make the embedding fit the tokenizer: rows for new special tokens, and rows that only pad."""

from contextlib import nullcontext
from typing import Any, ContextManager, List

import torch
from transformers import PreTrainedModel

Rows = List[torch.nn.Parameter]


def fit_vocabulary(model: PreTrainedModel, num_known: int, num_tokens: int, pad_to_multiple_of: int) -> int:
    """Grow the embedding (and an untied head) where the tokenizer has more tokens than it has rows, then pad it.

    New rows start as the mean of the existing ones (Hewitt 2021, https://nlp.stanford.edu/~johnhew/vocab-expansion.html).

    Args:
        num_known: tokens of the tokenizer before new ones were added; the new ones are ids num_known … num_tokens - 1,
            which may fall into spare rows that the model already has.

    Returns:
        The rows that are real: those beyond only pad, are left out of the loss and of sampling, and are not exported.
    """
    old = model.config.get_text_config().vocab_size
    real = max(old, num_tokens)
    padded = -(-real // pad_to_multiple_of) * pad_to_multiple_of
    if padded != old:
        model.resize_token_embeddings(padded, mean_resizing=False)
    fresh = [*range(num_known, num_tokens), *range(max(old, num_tokens), padded)]
    if not fresh:
        return real
    known = min(old, num_known)
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    for weight in [embedding] if head is embedding else [embedding, head]:
        with whole([weight]), torch.no_grad():
            if weight.shape[0]:
                weight[fresh] = weight[:known].float().mean(0).to(weight.dtype)
    bias = getattr(model.get_output_embeddings(), "bias", None)
    if bias is not None:
        with whole([bias]), torch.no_grad():
            if bias.shape[0]:
                bias[fresh] = bias[:known].float().mean().to(bias.dtype)
    return real


def whole(weights: Rows) -> ContextManager[Any]:
    """Under ZeRO-3, the weights in full; changes made by rank 0 are written back to every shard."""
    if not hasattr(weights[0], "ds_id"):
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(weights, modifier_rank=0)
