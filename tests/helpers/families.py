"""Small random models of the families in the invariance suite: fields of their transformers configs."""

from typing import Any, Dict

COMMON = {
    "vocab_size": 259, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 256, "bos_token_id": None, "eos_token_id": 257, "pad_token_id": 257,
}  # fmt: skip
GROUPED = {**COMMON, "num_key_value_heads": 2}
NO_DROPOUT = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}

FAMILIES: Dict[str, Dict[str, Any]] = {
    "llama": {"model_type": "llama", **GROUPED},
    "qwen3": {"model_type": "qwen3", **GROUPED, "head_dim": 16},
    "gemma3": {  # one layer of each kind; the window is shorter than documents
        "model_type": "gemma3_text", **GROUPED, "head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 16,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "mistral": {"model_type": "mistral", **GROUPED, "sliding_window": 8},
    "phi": {"model_type": "phi", **COMMON, "partial_rotary_factor": 0.5},
    "gpt2": {
        "model_type": "gpt2", "vocab_size": 259, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256,
        "bos_token_id": None, "eos_token_id": 257, **NO_DROPOUT,
    },
    "neox": {"model_type": "gpt_neox", **COMMON},
    "olmo2": {"model_type": "olmo2", **GROUPED},
    "mixtral": {"model_type": "mixtral", **GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2},
}  # fmt: skip
