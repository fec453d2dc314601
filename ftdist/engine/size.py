"""The size of a model: the number of weights that a token is multiplied with."""

from typing import Any, Optional

import torch

from ftdist.model.forward import without_engine
from ftdist.model.parts import other_parts
from ftdist.model.quantized import is_quantized
from ftdist.model.routers import has_experts, share_of_experts
from ftdist.model.vocabulary import whole_shape
from ftdist.plan.flops import ModelSize


def model_size(model: Any) -> Optional[ModelSize]:
    """Return the number of weights that a token is multiplied with, in a model or an engine. None: the config lacks a
    size."""
    causal_lm = without_engine(model)
    arch, head = causal_lm.config, causal_lm.get_output_embeddings()
    share = share_of_experts(arch) if has_experts(arch) else 1.0
    attention = _attention_width(arch)
    if share is None or attention is None:
        return None
    left_out = {
        id(parameter) for module in causal_lm.modules() if isinstance(module, torch.nn.Embedding)
        for parameter in module.parameters(recurse=False)
    }  # fmt: skip
    left_out -= {id(parameter) for parameter in head.parameters()} if head is not None else set()
    left_out |= {id(parameter) for part in other_parts(causal_lm).values() for parameter in part}
    counts = {True: 0.0, False: 0.0}
    for name, parameter in causal_lm.named_parameters():
        if id(parameter) not in left_out:
            used = share if ".experts." in name else 1.0
            counts[parameter.requires_grad] += used * _matrix_weights(parameter)
    return ModelSize(counts[True], counts[False], attention)


def _matrix_weights(parameter: Any) -> int:
    """Return the number of weights of a matrix, or of several in one parameter; 0 for vectors."""
    shape = parameter.quant_state.shape if is_quantized(parameter) else whole_shape(parameter)
    return torch.Size(shape).numel() if len(shape) > 1 else 0


def _attention_width(arch: Any) -> Optional[int]:
    """Return the width of the queries, summed over the layers with attention. None: the config does not say it."""
    text = arch.get_text_config()
    layers = getattr(text, "per_layer_config", None) or [text] * getattr(text, "num_hidden_layers", 0)
    if not layers:
        return None
    named = getattr(text, "layer_types", None) or getattr(text, "layers_block_type", None)
    kinds = map(str, named or ["attention"] * len(layers))
    widths = [_query_width(layer) for layer, kind in zip(layers, kinds, strict=False) if _has_attention(kind)]
    return None if None in widths else sum(filter(None, widths))


def _query_width(layer: Any) -> Optional[int]:
    heads = getattr(layer, "num_attention_heads", 0)
    if not heads or not isinstance(heads, int):
        return None if heads else 0
    return heads * int(getattr(layer, "head_dim", None) or layer.hidden_size // heads)


def _has_attention(kind: str) -> bool:
    return ("attention" in kind and "linear" not in kind) or "hybrid" in kind
