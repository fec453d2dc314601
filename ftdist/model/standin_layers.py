"""Which layers a stand-in has: one of each kind of the real model.

transformers describes layers in several ways: a list with one entry for each layer, a list of layer numbers, the length
of a first or last part of the layers, or a period. A layer's kind is everything that these fields say about it.
"""

from typing import Any, Dict, List, Tuple

MAX_LAYERS = 8
"""Maximum number of layers of a stand-in. If the model has more kinds of layers than this, the stand-in does not have
all of them."""
MIN_LAYERS = 2

NOT_LAYERS = ("mlp_multipliers", "ssm_multipliers", "time_step_limit", "axial_pos_shape", "axial_pos_embds_dim",
              "encoder_hash_byte_group_size", "eos_token_id", "begin_suppress_tokens", "suppress_tokens")  # fmt: skip
"""Lists that do not describe layers, even if they have as many entries as the model has layers."""
LAYER_NUMBERS = ("mlp_only_layers", "cross_attention_layers", "hybrid_layer_ids", "full_attn_idxs", "ple_layer_ids",
                 "moe_layers", "attn_layer_indices", "global_attn_layers")  # fmt: skip
"""Lists of the numbers of some layers."""
FIRST_LAYERS = ("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index", "first_num_dense_layers")
"""Number of layers at the beginning that are of another kind."""
LAST_LAYERS = ("num_kv_shared_layers",)
"""Number of layers at the end that are of another kind."""
LAST_LAYER = ("moe_layer_end_index",)
"""Number of the last layer of a kind."""
FIRST_LAYER = ("local_attention", "n_layers_per_attn_res_block")
"""Fields of models whose first layer lacks a part that all others have (ModernBERT, Inkling 2)."""
PATTERNS = ("block_types",)
"""Lists of kinds that are repeated until every layer has one (RecurrentGemma)."""
PERIODS = (("attn_layer_period", "attn_layer_offset"), ("expert_layer_period", "expert_layer_offset"),
           ("decoder_sparse_step", ""), ("moe_layer_interval", ""), ("moe_layer_freq", ""),
           ("interleave_moe_layer_step", ""), ("no_rope_layer_interval", ""))  # fmt: skip
"""Fields of a period and its offset. Layer i is special if ``i % period == offset``. Without an offset, it is the last
of each period."""
COVERED = {"attn_layer_period": ("layers_block_type", "layer_types"), "interleave_moe_layer_step": ("moe_layers",),
           "no_rope_layer_interval": ("no_rope_layers", "layer_types")}  # fmt: skip
"""Periods that have no effect if one of these lists is given."""
SHARED = "hybrid"
"""Layers of this kind share the weights of a block (Zamba)."""
PER_LAYER = "per_layer_config"
"""A dict with the fields of single layers that differ from those of the model, by number of layer."""


def select_layers(fields: Dict[str, Any], depth: int) -> Tuple[List[int], Dict[str, Any]]:
    """Choose the layers of a stand-in.

    Args:
        fields: Fields of the model's config.
        depth: Number of layers of the model.

    Returns:
        ``(numbers of the chosen layers in ascending order, fields that describe these layers only)``. The fields do
        not include the number of layers.
    """
    described = _describe(fields, depth)
    kinds = [tuple(repr(values[layer]) for values in described.values()) for layer in range(depth)]
    chosen = sorted({kind: layer for layer, kind in reversed(list(enumerate(kinds)))}.values())[:MAX_LAYERS]
    if any(name in described for name, _ in PERIODS):  # a period needs all layers up to the last new kind
        chosen = list(range(min(chosen[-1] + 1, 2 * MAX_LAYERS)))
    for values in described.values():  # a shared block is one that two layers share
        chosen += [layer for layer, value in enumerate(values) if value == SHARED and layer not in chosen][:1]
    others = [layer for layer in range(depth) if layer not in chosen]
    chosen = sorted(chosen + others[: max(0, MIN_LAYERS - len(chosen))])
    return chosen, _restrict(fields, described, chosen)


def _describe(fields: Dict[str, Any], depth: int) -> Dict[str, List[Any]]:
    """Return what each field says about each of the layers."""
    found: Dict[str, List[Any]] = {}
    layers = range(depth)
    for name, value in fields.items():
        if name in LAYER_NUMBERS and isinstance(value, (list, tuple)):
            found[name] = [layer in value for layer in layers]
        elif name in PATTERNS and value:
            found[name] = [value[layer % len(value)] for layer in layers]
        elif isinstance(value, (list, tuple)) and len(value) == depth and name not in NOT_LAYERS:
            found[name] = list(value)
        elif name in FIRST_LAYERS and isinstance(value, int):
            found[name] = [layer < value for layer in layers]
        elif name in LAST_LAYERS and value:
            found[name] = [layer >= depth - value for layer in layers]
        elif name in LAST_LAYER and isinstance(value, int):
            found[name] = [value < 0 or layer <= value for layer in layers]
        elif name in FIRST_LAYER:
            found[name] = [layer == 0 for layer in layers]
    if fields.get(PER_LAYER):
        numbers = {int(number): value for number, value in fields[PER_LAYER].items()}
        found[PER_LAYER] = [numbers.get(layer) for layer in layers]
    for period, offset in PERIODS:
        size = fields.get(period)
        covered = any(fields.get(other) for other in COVERED.get(period, ()))
        if isinstance(size, int) and size > 1 and not covered:
            first = fields.get(offset, size - 1) if offset else size - 1
            found[period] = [layer % size == first for layer in layers]
    return found


def _restrict(fields: Dict[str, Any], described: Dict[str, List[Any]], chosen: List[int]) -> Dict[str, Any]:
    """Return the fields that describe the chosen layers."""
    restricted: Dict[str, Any] = {}
    for name, values in described.items():
        kept = [values[layer] for layer in chosen]
        if name in LAYER_NUMBERS:
            restricted[name] = [number for number, special in enumerate(kept) if special]
        elif name in (*FIRST_LAYERS, *LAST_LAYERS):
            restricted[name] = sum(kept)
        elif name in LAST_LAYER:
            restricted[name] = fields[name] if fields[name] < 0 else max(0, sum(kept) - 1)
        elif name == PER_LAYER:
            restricted[name] = {number: dict(value) for number, value in enumerate(kept) if value}
        elif isinstance(fields[name], (list, tuple)):
            restricted[name] = kept
    return restricted
