"""Small random models of several families: fields of their transformers configs."""

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

_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
QWEN3_VL: Dict[str, Any] = {
    "model_type": "qwen3_vl",
    "text_config": {"model_type": "qwen3_vl_text", **GROUPED, "head_dim": 16, "rope_parameters": {
        "rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2], "mrope_interleaved": True}},
    "vision_config": {
        "model_type": "qwen3_vl", "hidden_size": 16, "intermediate_size": 32, "depth": 1, "num_heads": 2,
        "out_hidden_size": 32, "deepstack_visual_indexes": [0], "num_position_embeddings": 16,
    },
    "image_token_id": 258, "video_token_id": 256, "vision_start_token_id": 254, "vision_end_token_id": 255,
}  # fmt: skip
"""Only ``AutoModelForMultimodalLM`` builds it."""
QWEN3_VL_MOE = {
    **QWEN3_VL, "model_type": "qwen3_vl_moe",
    "text_config": {**QWEN3_VL["text_config"], "model_type": "qwen3_vl_moe_text", **_EXPERTS, "num_experts": 4},
    "vision_config": {**QWEN3_VL["vision_config"], "model_type": "qwen3_vl_moe"},
}  # fmt: skip
"""transformers looks at the shapes of its experts when it reads them, which are sharded with ZeRO-3."""
OTHER_FAMILIES: Dict[str, Dict[str, Any]] = {
    "bloom": {  # ALiBi; transformers cannot isolate documents in its rows
        "model_type": "bloom", "vocab_size": 259, "hidden_size": 32, "n_layer": 2, "n_head": 4,
        "attention_dropout": 0.0, "hidden_dropout": 0.0, "bos_token_id": None, "eos_token_id": 257, "pad_token_id": 257,
    },
    "gemma2": {"model_type": "gemma2", **GROUPED, "head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 16},
    "gpt_oss": {  # sinks, and the balance loss of its experts
        "model_type": "gpt_oss", **GROUPED, "head_dim": 16, "sliding_window": 8, "num_local_experts": 4,
        "num_experts_per_tok": 2, "layer_types": ["sliding_attention", "full_attention"], "output_router_logits": True,
        "router_aux_loss_coef": 0.5,
    },
    "bart": {  # its cross-attention gets no gradient, because there is no encoder
        "model_type": "bart", "vocab_size": 259, "d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4,
        "decoder_ffn_dim": 64, "max_position_embeddings": 256, "dropout": 0.0, "pad_token_id": 257, "bos_token_id": 256,
        "eos_token_id": 257, "is_encoder_decoder": False,
    },
    "gemma3_images": {  # with an image encoder, which is not trained
        "model_type": "gemma3", "text_config": {"model_type": "gemma3_text", **GROUPED, "head_dim": 16},
        "vision_config": {
            "model_type": "siglip_vision_model", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
            "num_attention_heads": 2, "image_size": 16, "patch_size": 8,
        },
        "mm_tokens_per_image": 1, "image_token_index": 258, "boi_token_index": 255, "eoi_token_index": 256,
    },
    "mixtral_balanced": {  # with the balance loss of its experts
        "model_type": "mixtral", **GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2,
        "output_router_logits": True, "router_aux_loss_coef": 0.5,
    },
    "llama4": {  # chunked attention; the chunks are shorter than documents
        "model_type": "llama4_text", **GROUPED, "head_dim": 16, "attention_chunk_size": 8, "num_local_experts": 2,
        "intermediate_size_mlp": 64, "layer_types": ["chunked_attention", "full_attention"], "no_rope_layers": [1, 0],
    },
    "deepseek_v3": {  # latent attention, a dense layer and a mixture of experts
        "model_type": "deepseek_v3", **COMMON, **_EXPERTS, "num_key_value_heads": 4, "n_routed_experts": 4,
        "n_group": 2, "topk_group": 1, "n_shared_experts": 1, "first_k_dense_replace": 1, "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
    },
    "qwen3_next": {  # a gated delta net and full attention
        "model_type": "qwen3_next", **GROUPED, **_EXPERTS, "head_dim": 16, "num_experts": 4,
        "shared_expert_intermediate_size": 16, "linear_num_value_heads": 4, "linear_num_key_heads": 2,
        "linear_key_head_dim": 8, "linear_value_head_dim": 8, "layer_types": ["linear_attention", "full_attention"],
    },
    "jamba": {  # Mamba and attention
        "model_type": "jamba", **GROUPED, "num_experts": 2, "num_experts_per_tok": 1, "attn_layer_period": 2,
        "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1, "mamba_d_state": 8,
        "mamba_dt_rank": 4, "use_mamba_kernels": False,
    },
    "phi3_longrope": {  # its rotary embedding depends on the longest document: one forward pass for each document
        "model_type": "phi3", **GROUPED, "original_max_position_embeddings": 24,
        "rope_parameters": {
            "rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 24,
            "short_factor": [1.0] * 4, "long_factor": [4.0] * 4,
        },
    },
}  # fmt: skip
"""Models whose documents need a slower way than SDPA on each document."""

TINY = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
"""Fields of a config that every family accepts, for unit tests."""
