"""Fields of configs that change what widely used types compute: ``python -m tests.models.fields [NAME…]``.

Each variant of a tiny model goes through what ``tests.models.alone`` examines: the loss and the gradients of a packed
micro-batch, as a run computes them, are those of plain transformers with eager attention, one document at a time. Then
two ranks train it with ZeRO-3, save and export it (``tests.models.whole_run``).
"""

import sys
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, Collection, Dict, List, Optional, Tuple

from tests.models.alone import Outcome, examine
from tests.models.pair import Pair
from tests.models.suite import examine_all, prepared_folder, whole_run
from tests.models.whole_run import run_model

WINDOW = 8
"""Shorter than every document but one."""
SLIDING, FULL = "sliding_attention", "full_attention"


def _rope(kind: str, **more: Any) -> Dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 1e4, **more}, "max_position_embeddings": 64}


def _longrope(half: int) -> Dict[str, Any]:
    return _rope("longrope", short_factor=[1.0] * half, long_factor=[4.0] * half, factor=4.0,
                 original_max_position_embeddings=16)  # fmt: skip


ROPES: Dict[str, Dict[str, Any]] = {
    "linear": _rope("linear", factor=4.0),
    "dynamic": _rope("dynamic", factor=4.0) | {"max_position_embeddings": 16},
    "yarn": _rope("yarn", factor=4.0, original_max_position_embeddings=16),
    "llama3": _rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                    original_max_position_embeddings=16),
}  # fmt: skip

_GROUPS = {"n_group": 2, "topk_group": 1, "n_routed_experts": 8, "num_experts_per_tok": 3, "routed_scaling_factor": 1.7}
_MULTIPLIERS = {"attention_multiplier": 0.3, "embedding_multiplier": 5.0, "residual_multiplier": 0.22,
                "logits_scaling": 8.0}  # fmt: skip


def _partial(rotated: float) -> Dict[str, Any]:
    return _rope("default", partial_rotary_factor=rotated)


def _two_ropes(kind: str) -> Dict[str, Any]:
    """Return fields of a model whose layers with a window have another rotary embedding than the others."""
    ropes = {
        SLIDING: {"rope_type": "default", "rope_theta": 1e4},
        FULL: {"rope_type": kind, "factor": 8.0, "rope_theta": 1e6},
    }
    return {
        "rope_parameters": ropes,
        "max_position_embeddings": 16,
        "layer_types": [SLIDING, FULL],
        "sliding_window": WINDOW,
    }


Variant = Tuple[str, Dict[str, Any]]
VARIANTS: Dict[str, Variant] = {
    **{f"llama, rope {kind}": ("llama", rope) for kind, rope in ROPES.items()},
    "llama, rope longrope": ("llama", _longrope(8)),
    "llama, biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, sdpa in the config": ("llama", {"attn_implementation": "sdpa"}),
    "llama, one key-value head": ("llama", {"num_key_value_heads": 1}),
    "qwen2, sliding": ("qwen2", {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1,
                                 "layer_types": [FULL, SLIDING]}),
    "qwen2, not sliding": ("qwen2", {"use_sliding_window": False, "sliding_window": WINDOW}),
    "qwen2, three heads": ("qwen2", {"hidden_size": 192, "num_attention_heads": 3, "num_key_value_heads": 3}),
    "qwen2, rope yarn": ("qwen2", ROPES["yarn"]),
    "qwen3, sliding": ("qwen3", {"use_sliding_window": True, "sliding_window": WINDOW, "layer_types": [SLIDING, FULL]}),
    "qwen3_moe, sliding": ("qwen3_moe", {"use_sliding_window": True, "sliding_window": WINDOW}),
    "mistral, sliding": ("mistral", {"sliding_window": WINDOW}),
    "mistral, not sliding": ("mistral", {"sliding_window": None}),
    "mixtral, sliding": ("mixtral", {"sliding_window": WINDOW}),
    "ministral, sliding": ("ministral", {"sliding_window": WINDOW, "layer_types": [SLIDING, FULL]}),
    "starcoder2, sliding": ("starcoder2", {"sliding_window": WINDOW}),
    "phi3, sliding": ("phi3", {"sliding_window": WINDOW}),
    "phi3, longrope": ("phi3", _longrope(8) | {"original_max_position_embeddings": 16}),
    "gemma2, all sliding": ("gemma2", {"sliding_window": WINDOW, "layer_types": [SLIDING] * 2}),
    "gemma2, all full": ("gemma2", {"layer_types": [FULL] * 2}),
    "gemma2, no soft caps": ("gemma2", {"attn_logit_softcapping": None, "final_logit_softcapping": None}),
    "gemma2, both directions": ("gemma2", {"use_bidirectional_attention": True}),
    "gemma, both directions": ("gemma", {"use_bidirectional_attention": True}),
    "gemma3_text, all full": ("gemma3_text", {"layer_types": [FULL] * 2}),
    "gemma3_text, sliding": ("gemma3_text", {"sliding_window": WINDOW, "layer_types": [SLIDING, FULL]}),
    "gemma3_text, both directions": ("gemma3_text", {"use_bidirectional_attention": True}),
    "cohere2, sliding": ("cohere2", {"sliding_window": WINDOW, "layer_types": [SLIDING, FULL]}),
    "olmo3, sliding": ("olmo3", {"sliding_window": WINDOW, "layer_types": [SLIDING, FULL]}),
    "gpt_oss, all full": ("gpt_oss", {"layer_types": [FULL] * 2}),
    "gpt_oss, all sliding": ("gpt_oss", {"layer_types": [SLIDING] * 2, "sliding_window": WINDOW}),
    "llama4_text, short chunks": ("llama4_text", {"attention_chunk_size": WINDOW}),
    "llama4_text, all full": ("llama4_text", {"layer_types": [FULL] * 2, "no_rope_layers": [1, 1]}),
    "smollm3, sliding": ("smollm3", {"use_sliding_window": True, "sliding_window": WINDOW, "no_rope_layers": [1, 0]}),
    "exaone4, sliding": ("exaone4", {"sliding_window": WINDOW, "layer_types": [SLIDING, FULL]}),
    "gpt_neox, rope dynamic": ("gpt_neox", ROPES["dynamic"]),
    "gpt_neox, sequential": ("gpt_neox", {"use_parallel_residual": False}),
    "falcon, alibi": ("falcon", {"alibi": True}),
    "falcon, several key-value heads": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "stablelm, norms of heads": ("stablelm", {"qk_layernorm": True, "use_parallel_residual": True}),
    "gpt2, scaled by layer": ("gpt2", {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True}),
    "opt, norm after": ("opt", {"do_layer_norm_before": False}),
    "gpt_neo, local": ("gpt_neo", {"attention_types": [[["global", "local"], 1]], "window_size": WINDOW}),
    "modernbert-decoder, local": ("modernbert-decoder", {"local_attention": WINDOW}),
    "deepseek_v3, rope yarn": ("deepseek_v3", ROPES["yarn"]),
    "llama, rope yarn with odd factors": ("llama", _rope(
        "yarn", factor=2.5, attention_factor=1.3, beta_fast=7.0, beta_slow=0.5, truncate=False,
        original_max_position_embeddings=16)),
    "deepseek_v3, rope yarn with scales": ("deepseek_v3", _rope(
        "yarn", factor=4.0, mscale=1.0, mscale_all_dim=0.7, original_max_position_embeddings=16)),
    "deepseek_v3, no rank of queries": ("deepseek_v3", {
        "q_lora_rank": None, "rope_interleave": False, "num_nextn_predict_layers": 2, "attention_bias": True}),
    "deepseek_v3, groups of experts": ("deepseek_v3", _GROUPS | {"norm_topk_prob": False}),
    "deepseek_v2, groups of experts": ("deepseek_v2", _GROUPS | {"topk_method": "group_limited_greedy"}),
    "glm4_moe, norms of heads": ("glm4_moe", _GROUPS | _partial(0.25) | {
        "use_qk_norm": True, "attention_bias": True, "num_nextn_predict_layers": 2}),
    "qwen2_moe, dense layers": ("qwen2_moe", {
        "num_hidden_layers": 4, "layer_types": [FULL] * 4, "mlp_only_layers": [1], "decoder_sparse_step": 2,
        "norm_topk_prob": True, "qkv_bias": False}),
    "qwen3_moe, a dense layer": ("qwen3_moe", {
        "num_hidden_layers": 3, "mlp_only_layers": [1], "num_key_value_heads": 1, "attention_bias": True}),
    "gemma2, odd scale and pattern": ("gemma2", {
        "query_pre_attn_scalar": 7, "num_hidden_layers": 4, "layer_types": [SLIDING, SLIDING, FULL, SLIDING],
        "sliding_window": 5, "tie_word_embeddings": False}),
    "gemma3_text, rope linear in full layers": ("gemma3_text", _two_ropes("linear")),
    "gemma3_text, rope dynamic in full layers": ("gemma3_text", _two_ropes("dynamic")),
    "granite, multipliers": ("granite", _MULTIPLIERS | {
        "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "granitemoeshared, multipliers": ("granitemoeshared", _MULTIPLIERS | {"shared_intermediate_size": 32}),
    "cohere, norms of heads": ("cohere", {"use_qk_norm": True, "logit_scale": 0.3, "num_key_value_heads": 2}),
    "phi, norms of heads": ("phi", _partial(0.75) | {"qk_layernorm": True, "num_key_value_heads": 1}),
    "mistral, window of one token": ("mistral", {"sliding_window": 1}),
    "smollm3, no rope": ("smollm3", {"no_rope_layers": [0, 0]}),
    "llama4_text, tuned temperature": ("llama4_text", {
        "attn_temperature_tuning": True, "floor_scale": 8, "attn_scale": 0.3, "use_qk_norm": False, "moe_layers": [1],
        "layer_types": ["chunked_attention", FULL], "no_rope_layers": [1, 0], "attention_chunk_size": 1000}),
    "gpt_oss, limits": ("gpt_oss", {
        "swiglu_limit": 0.5, "swiglu_alpha": 0.7, "sliding_window": 3, "num_key_value_heads": 1}),
    "laguna, other heads in each layer": ("laguna", {
        "num_hidden_layers": 3, "layer_types": [FULL, SLIDING, SLIDING], "sliding_window": WINDOW, "gating": False,
        "num_attention_heads_per_layer": [4, 2, 8], "mlp_layer_types": ["sparse", "dense", "sparse"],
        "moe_router_logit_softcapping": 1.0, "moe_routed_scaling_factor": 1.7}),
    "dbrx, clipped": ("dbrx", {"attn_config": {"clip_qkv": 0.3, "kv_n_heads": 2, "rope_theta": 1e4}}),
    "mpt, no alibi": ("mpt", {"attn_config": {"alibi": False, "clip_qkv": 0.3, "softmax_scale": 0.1}}),
    "opt, projected": ("opt", {
        "word_embed_proj_dim": 32, "enable_bias": False, "layer_norm_elementwise_affine": False}),
    "bart, scaled embedding": ("bart", {"scale_embedding": True}),
    "recurrent_gemma, pattern": ("recurrent_gemma", {
        "num_hidden_layers": 3, "block_types": ["attention", "recurrent", "attention"], "attention_window_size": 5}),
    "nemotron_h, pattern": ("nemotron_h", _GROUPS | {
        "layers_block_type": [FULL, "linear_attention", "moe", "mlp", "linear_attention"], "moe_latent_size": 16,
        "num_nextn_predict_layers": 1, "use_mamba_kernels": False}),
    "rwkv, rescaled": ("rwkv", {"rescale_every": 1, "num_hidden_layers": 3}),
    "gemma4_text, experts": ("gemma4_text", {
        "enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32}),
}  # fmt: skip
"""By name the type, and the fields that get another value."""
REFUSED = {
    "falcon, alibi": "its logits with eager attention, which training is compared with, differ",
    "gemma, both directions": "gemma reads text in both directions",
    "gemma3_text, both directions": "tokens of gemma3_text can see later tokens",
}
"""Variants that are refused, and a part of the reason. transformers 5.23 adds the biases of Falcon twice with eager
attention."""
ROWS = ("bart, scaled embedding", "gemma3_text, rope dynamic in full layers", "gpt_neox, rope dynamic",
        "llama, rope dynamic", "llama, rope longrope", "llama4_text, short chunks", "llama4_text, tuned temperature",
        "nemotron_h, pattern", "phi3, longrope", "recurrent_gemma, pattern", "rwkv, rescaled")  # fmt: skip
"""Variants in which each document must be a row of its own."""
SMALLER_STAGES = ("rwkv, rescaled",)
"""Variants of types that transformers cannot load with ZeRO-3. They run with ZeRO-2."""
CI = ("falcon, alibi", "llama, rope dynamic", "qwen2, sliding")
"""Variants that CI checks each time."""


def run(names: List[str], runs: Collection[str], jobs: int = 2) -> Dict[str, Outcome]:
    """Return the outcome of each variant.

    Args:
        runs: Variants that also go through a whole run.
        jobs: Number of processes.
    """
    with prepared_folder() as folder:
        found = examine_all({name: partial(_in_a_folder, name) for name in names}, jobs, folder)
        with closing(Pair(run_model)) as pair:
            for name, outcome in found.items():
                if outcome.result in ("packed", "rows") and name in runs:
                    found[name] = whole_run(pair, VARIANTS[name][0], outcome, folder / name)
    return found


def _in_a_folder(name: str, folder: Path) -> Outcome:
    model_type, changed = VARIANTS[name]
    (own := folder / name).mkdir()
    (own / "cache").symlink_to(folder / "cache")
    return examine(model_type, own, changed)


def main(argv: Optional[List[str]] = None) -> int:
    chosen = sys.argv[1:] if argv is None else argv
    found = run(names := chosen or list(VARIANTS), names)
    for name, outcome in found.items():
        columns = f"{outcome.checkpointing:14} {outcome.zero3:8} {outcome.export:6}"
        print(f"{name:34} {outcome.result:8} {outcome.attention:42} {columns} {outcome.note[:160]}")
    return int(any(outcome.result == "wrong" for outcome in found.values()))


if __name__ == "__main__":
    sys.exit(main())
