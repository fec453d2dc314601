"""The sizes of a stand-in: every size of the real model, reduced so that sizes that depend on each other still fit.

Lengths (of positions or RoPE) are not changed, because they cost no memory. Windows and chunks become short.
``short_limits`` also shortens the lengths that documents of the run exceed.
"""

import math
from typing import Any, Dict, List, Mapping, Sequence

SHORT = 16
"""Limits of a stand-in are at most this long: shorter than most of the documents."""
LIMITS = ("window", "chunk_size", "chunk_length", "topk", "block_size", "original_max_position", "local_attention",
          "compressed_attention")  # fmt: skip
"""Config fields with one of these in their names are limits: a token does not see further, or the computation is
another one beyond this length."""
ROW_LIMITS = ("floor_scale",)
"""Limits that a model compares with positions in the whole row instead of positions in the document (Llama 4)."""
TABLES = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length")
"""Numbers of positions. Some models cut a table of this length to the length of a row, not of a document (GPT-Neo)."""
BETWEEN = 64
"""Longer than the documents of the comparison, and shorter than a row of them."""
HIDDEN, INNER, EXPERT, HEADS, HEAD, ROTARY, EXPERTS, ACTIVE, WINDOW, CHUNK, STATE, RANK = (
    64, 128, 32, 4, 16, 8, 4, 2, 16, 16, 8, 16,
)  # fmt: skip
_BY_SIZE = (
    (HIDDEN, "hidden_size d_model n_embd embedding_size input_embedding_size output_embedding_size word_embed_proj_dim "
             "emb_dim embedding_dim lru_width attention_hidden_size out_hidden_size output_dim backbone_hidden_size "
             "embed_dim adapter_in_dim adapter_out_dim adapter_input_size hidden_size_global "
             "text_hidden_size audio_hidden_size upsample_groups"),
    (INNER, "intermediate_size n_inner d_inner dff dim_ff ffn_dim decoder_ffn_dim encoder_ffn_dim feed_forward_size "
            "ffn_hidden_size intermediate_size_mlp dense_intermediate_size mlp_dim"),
    (EXPERT, "moe_intermediate_size shared_expert_intermediate_size shared_intermediate_size expert_ffn_hidden_size "
             "moe_shared_expert_intermediate_size shared_experts_intermediate_size router_hidden_size ple_embed_dim"),
    (HEADS, "num_attention_heads n_head n_heads num_heads attention_heads decoder_attention_heads "
            "encoder_attention_heads num_decoder_attention_heads num_encoder_attention_heads swa_num_attention_heads "
            "linear_num_heads linear_num_value_heads"),
    (HEAD, "head_dim attention_head_size d_head dim_head global_head_dim linear_head_dim linear_key_head_dim "
           "kv_channels linear_value_head_dim swa_head_dim index_head_dim indexer_head_dim v_head_dim "
           "query_pre_attn_scalar"),
    (ROTARY, "rotary_dim qk_rope_head_dim qk_nope_head_dim"),
    (EXPERTS, "num_experts num_local_experts n_routed_experts moe_num_experts zero_expert_num"),
    (ACTIVE, "num_experts_per_tok num_experts_per_token moe_k moe_topk n_group topk_group num_expert_group moe_top_k "
             "top_k_experts "
             "n_shared_experts moe_num_shared_experts num_shared_experts index_n_heads indexer_n_heads "
             "indexer_kv_heads o_groups n_groups mamba_n_groups mamba_ngroups n_layers_per_attn_res_block "
             "num_layers_per_stack n_mamba_heads hc_count hc_mult heads_per_ngram"),
    (WINDOW, "sliding_window sliding_window_size window_size attention_window_size local_attention keep_window_size "
             "indexer_budget rel_extent local_attention_window_len"),
    (CHUNK, "chunk_size mamba_chunk_size chunk_length"),
    (STATE, "state_size mamba_d_state ssm_state_size time_step_rank mamba_dt_rank"),
    (RANK, "q_lora_rank kv_lora_rank o_lora_rank adapter_rank laurel_rank hc_lowrank gated_norm_rank "
           "hidden_size_per_layer_input d_rel"),
)  # fmt: skip
SIZES: Mapping[str, int] = {name: size for size, names in _BY_SIZE for name in names.split()}
"""Maximum value of each field that is a size."""
GROUPS = (("num_key_value_heads", "num_attention_heads"), ("swa_num_key_value_heads", "swa_num_attention_heads"),
          ("num_global_key_value_heads", "num_attention_heads"), ("linear_num_key_heads", "linear_num_value_heads"),
          ("num_query_groups", "num_attention_heads"), ("num_kv_heads", "num_attention_heads"))  # fmt: skip
"""Numbers of heads that keep their ratio to another number of heads."""


def reduce_sizes(fields: Dict[str, Any], real: Mapping[str, Any], names: Mapping[str, str]) -> None:
    """Reduce the sizes of a config in place.

    Args:
        fields: Fields of the stand-in's config.
        real: Fields of the model's config.
        names: ``attribute_map`` of the config class: its own names of common fields.
    """
    sizes = {names.get(name, name): size for name, size in SIZES.items()}
    for name, size in sizes.items():
        fields.update({name: _at_most(fields[name], size)} if name in fields else {})
    for part, whole in GROUPS:
        part, whole = names.get(part, part), names.get(whole, whole)
        if isinstance(real.get(part), int) and isinstance(real.get(whole), int):
            fields[part] = max(1, math.ceil(fields[whole] * real[part] / real[whole]))
    _fit_heads(fields, names)
    _fit_attention(fields, real, names)
    _fit_experts(fields, real, names)
    _fit_state_space(fields, names)
    _fit_rope(fields, names)
    for name, value in _ABSENT.items():
        if name in fields and fields[name] is None and real.get("model_type") in value:
            fields[name] = value[real["model_type"]]
    fields.update(_RULES.get(real.get("model_type", ""), {}))


def in_proportion(own: Mapping[str, Any], real: Mapping[str, Any], fields: Mapping[str, Any]) -> Dict[str, Any]:
    """Return the fields of a single layer, reduced in proportion to the same fields of the whole model."""
    return {name: max(1, fields[name] * value // real[name])
            if isinstance(real.get(name), int) and real[name] > 1 else _at_most(value, SIZES.get(name, value))
            for name, value in own.items()}  # fmt: skip


def fit_parts(fields: Dict[str, Any]) -> None:
    """Make sizes in a config consistent with those of its parts."""
    kind = fields["model_type"]
    if kind == "fun_asr_nano":
        fields["adaptor_config"]["intermediate_size"] = fields["text_config"]["hidden_size"] // 4
    if kind == "kyutai_speech_to_text":  # the last row of an embedding of text and sounds
        fields["audio_pad_token_id"] = fields["vocab_size"] + fields["num_codebooks"] * fields["codebook_vocab_size"]


def short_limits(fields: Dict[str, Any], longest: int, row: int = 0) -> Dict[str, Any]:
    """Return fields of a config whose limits are shorter than the documents of the comparison.

    Limits that no document of the run reaches are not changed.

    Args:
        longest: Length of the longest document of the run, in tokens.
        row: Length of the longest row of several documents, if it is longer.
    """

    def short_all(fields: Mapping[Any, Any]) -> Dict[Any, Any]:
        limits = (*LIMITS, "max_position_embeddings") if _dynamic_rope(fields.get("rope_parameters")) else LIMITS
        return {name: short(name, value, limits) for name, value in fields.items()}

    def short(name: Any, value: Any, limits: Sequence[str]) -> Any:
        if isinstance(value, dict):
            return short_all(value)
        if not isinstance(value, int) or isinstance(value, bool) or not isinstance(name, str):
            return value
        reached = value < longest and any(part in name for part in limits)
        if name in TABLES and longest <= value < row:
            return min(value, BETWEEN)
        return min(value, SHORT) if reached or (name in ROW_LIMITS and value < max(longest, row)) else value

    short_fields = short_all(fields)
    blocks = fields.get("num_random_blocks")
    if blocks and longest > (5 + 2 * blocks) * fields["block_size"]:  # BigBird: longer documents see some blocks only
        short_fields["block_size"] = SHORT // 4
    return short_fields


def _dynamic_rope(rope: Any) -> bool:
    """Return whether the frequencies of a rotary embedding depend on the longest document, beyond all positions."""
    if not isinstance(rope, dict):
        return False
    return rope.get("rope_type") == "dynamic" or any(_dynamic_rope(part) for part in rope.values())


def _at_most(value: Any, size: int) -> Any:
    if isinstance(value, (list, tuple)):
        return [_at_most(item, size) for item in value]
    return min(value, size) if isinstance(value, int) and not isinstance(value, bool) else value


def _fit_heads(fields: Dict[str, Any], names: Mapping[str, str]) -> None:
    """Change the hidden size if the size of a head follows from it (hidden size / heads) and is not an even number."""
    heads = fields.get(names.get("num_attention_heads", "num_attention_heads"))
    hidden = fields.get(names.get("hidden_size", "hidden_size"))
    given = fields.get(names.get("head_dim", "head_dim"))
    if given or not (isinstance(heads, int) and isinstance(hidden, int)) or hidden % (2 * heads) == 0:
        return
    for name in _BY_SIZE[0][1].split():
        name = names.get(name, name)
        if fields.get(name) == hidden:
            fields[name] = heads * HEAD


def _fit_attention(fields: Dict[str, Any], real: Mapping[str, Any], names: Mapping[str, str]) -> None:
    """Make the sizes of heads consistent."""
    if "qk_nope_head_dim" in fields:  # latent attention (DeepSeek): a head has a part with and a part without RoPE
        heads = fields["qk_nope_head_dim"] + fields["qk_rope_head_dim"]
        fields.update({"qk_head_dim": heads} if "qk_head_dim" in fields else {})
        if isinstance(fields.get("head_dim"), int):
            fields["head_dim"] = heads if _is_whole_head(real) else fields["qk_rope_head_dim"]
    if fields.get("attention_hidden_size") and names.get("head_dim") == "attention_head_dim":  # Zamba
        fields["attention_hidden_size"] = 2 * fields["hidden_size"]
        fields["attention_head_dim"] = fields["attention_hidden_size"] // fields["num_attention_heads"]
    heads_per_layer = fields.get("num_attention_heads_per_layer")
    if heads_per_layer:  # Laguna
        fields["num_attention_heads_per_layer"] = [
            HEADS if heads == max(heads_per_layer) else HEADS // 2 for heads in heads_per_layer
        ]


def _is_whole_head(fields: Mapping[str, Any]) -> bool:
    """Return whether ``head_dim`` is the size of both parts of a head (Mistral 4), and not of the part with RoPE."""
    parts: List[Any] = [fields.get("qk_nope_head_dim"), fields.get("qk_rope_head_dim")]
    return None not in parts and bool(fields.get("head_dim") == sum(parts))


def _fit_experts(fields: Dict[str, Any], real: Mapping[str, Any], names: Mapping[str, str]) -> None:
    """If tokens use only some of the groups of experts, give the stand-in two groups, of which tokens use one."""
    if (real.get("topk_group") or 0) < (real.get("n_group") or 0):
        fields.update(n_group=2, topk_group=1)
    elif isinstance(real.get("n_group"), int):
        fields["topk_group"] = fields["n_group"]
    if (real.get("topk_group") or 0) < (real.get("num_expert_group") or 0):
        fields.update(num_expert_group=2, topk_group=1)


def _fit_state_space(fields: Dict[str, Any], names: Mapping[str, str]) -> None:
    """Make the sizes of state-space layers consistent: their heads together are as wide as their inner size."""
    hidden = fields.get(names.get("hidden_size", "hidden_size"))
    inner = hidden * fields.get("mamba_expand", fields.get("expand", 1)) if isinstance(hidden, int) else 0
    if fields.get("mamba_d_ssm"):
        inner = fields["mamba_d_ssm"] = HIDDEN
    if "mamba_n_heads" in fields:
        fields.update(mamba_n_heads=HEADS, mamba_d_head=inner // HEADS)
    if "mamba_headdim" in fields:  # Zamba 2
        fields["mamba_headdim"] = inner // fields["n_mamba_heads"]
    if "expand" in fields and "num_heads" in fields:  # Mamba 2
        fields["head_dim"] = inner // fields["num_heads"]
    if "mamba_num_heads" in fields:  # Nemotron-H
        fields.update(mamba_num_heads=HEADS, mamba_head_dim=HEAD)


def _fit_rope(fields: Dict[str, Any], names: Mapping[str, str]) -> None:
    """Shorten the lists in the parameters of RoPE that have an entry for each pair of rotated sizes."""
    rope = fields.get("rope_parameters")
    if not isinstance(rope, dict):
        return
    fields["rope_parameters"] = rope = dict(rope)
    nested = [name for name, value in rope.items() if isinstance(value, dict)]
    for name in nested:
        rope[name] = dict(rope[name])
    heads = fields.get(names.get("num_attention_heads", "num_attention_heads"))
    hidden = fields.get(names.get("hidden_size", "hidden_size"))
    if not (isinstance(heads, int) and isinstance(hidden, int)):
        return
    width = fields.get("qk_rope_head_dim") or fields.get("head_dim") or hidden // heads
    for part in [rope, *(rope[name] for name in nested)]:
        if "partial_rotary_factor" in part and _is_whole_head(fields):
            part["partial_rotary_factor"] = width / fields["head_dim"]
        rotated = int(width * part.get("partial_rotary_factor", 1.0)) // 2
        part.update({name: part[name][:rotated] for name in ("long_factor", "short_factor") if part.get(name)})
        real = part.get("mrope_section") or _SECTIONS.get(fields.get("model_type", ""))
        if real:  # the pairs of sizes that are rotated by time, height and width
            part["mrope_section"] = _sections(real, rotated)


def _sections(real: Sequence[int], total: int) -> List[int]:
    """Return sections in proportion to those of the model, with this sum. Sections of one size keep one size, which
    Ernie 4.5 VL requires."""
    sections = [max(1, total * size // sum(real)) for size in real]
    rest = total - sum(sections)
    growing = next((size for size in real if rest % real.count(size) == 0), None)
    if growing is None:
        return [sections[0] + rest, *sections[1:]]
    return [section + rest // real.count(growing) * (size == growing)
            for section, size in zip(sections, real, strict=True)]  # fmt: skip


_SECTIONS = {
    **dict.fromkeys(("qwen2_vl_text", "qwen2_5_vl_text", "qwen2_5_omni_text", "paddleocr_vl_text"), (16, 24, 24)),
    **dict.fromkeys(("glm4v_text", "glm4v_moe_text", "glm_ocr_text"), (8, 12, 12)),
    "ernie4_5_vl_moe_text": (22, 22, 20),
}
"""``mrope_section`` of models that have it as a constant in their code if their config lacks it."""
_ABSENT: Dict[str, Dict[str, Any]] = {
    "head_dim": {"ministral": HEAD, "hunyuan_v1_dense": HEAD, "hunyuan_v1_moe": HEAD},
    "num_key_value_heads": {"nemotron": HEADS},
    "num_experts_per_tok": {"deepseek_v2": ACTIVE, "dots1": ACTIVE},
    "n_routed_experts": {"dots1": EXPERTS}, "n_shared_experts": {"dots1": 1},
    "layer_types": {"lfm2_moe": ["conv", "full_attention"]},
    "indexer_n_heads": {"qwen4_exp_text": ACTIVE}, "indexer_kv_heads": {"qwen4_exp_text": 1},
    "indexer_head_dim": {"qwen4_exp_text": HEAD}, "indexer_budget": {"qwen4_exp_text": WINDOW},
    "indexer_compress_ratio": {"qwen4_exp_text": ACTIVE},
}  # fmt: skip
"""Values of fields that are set in every published model, but not in the default config of its class."""
_RULES: Dict[str, Dict[str, Any]] = {
    "xmod": {"default_language": "en_XX"},
    "chameleon_vqgan": {"base_channels": 32},
    "emu3_vqgan": {"base_channels": 32, "hidden_size": 128},  # the width of its last block
    "nemotron3_diarization": {"chunk_left_context": 1, "chunk_right_context": 1},
    "fun_asr_nano_encoder": {"num_timestamp_prediction_layers": 1},
    "dots3_note_text": {"head_dim": 20},  # qk_nope_head_dim of its layers with a window, and qk_rope_head_dim
}
"""Fields with a rule of their own in a single class."""
