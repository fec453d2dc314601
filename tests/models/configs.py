"""The configs of widely used models: the fields of their ``config.json``, as their documentation gives them.

They are compact on purpose: one entry for a model, without fields that have their default and without tokens. Only
stand-ins of them are built (``ftdist.model.standin``), so the real sizes cost nothing.
"""

from typing import Any, Dict


def _sizes(hidden: int, inner: int, layers: int, heads: int, groups: int = 0, head: int = 0) -> Dict[str, Any]:
    """Return the common sizes. ``groups`` is the number of key-value heads, ``head`` the size of a head."""
    fields = {"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers,
              "num_attention_heads": heads, "num_key_value_heads": groups or heads}  # fmt: skip
    return {**fields, **({"head_dim": head} if head else {})}


def _experts(count: int, active: int, inner: int = 0) -> Dict[str, Any]:
    return {"num_experts": count, "num_experts_per_tok": active, **({"moe_intermediate_size": inner} if inner else {})}


def _rope(theta: float, kind: str = "default", **more: Any) -> Dict[str, Any]:
    return {"rope_parameters": {"rope_theta": theta, "rope_type": kind, **more}}


_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
_LONGROPE = {
    **_rope(1e4, "longrope", short_factor=[1.0] * 48, long_factor=[4.0] * 48, original_max_position_embeddings=4096),
    "max_position_embeddings": 131072, "original_max_position_embeddings": 4096,
}  # fmt: skip
_LATENT = {"kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}

CONFIGS: Dict[str, Dict[str, Any]] = {
    "Llama-2-7b": {"model_type": "llama", "vocab_size": 32000, **_sizes(4096, 11008, 32, 32)},
    "Llama-3.1-8B": {
        "model_type": "llama", "vocab_size": 128256, **_sizes(4096, 14336, 32, 32, 8),
        "max_position_embeddings": 131072, **_rope(5e5, "llama3", factor=8.0, **_LLAMA3),
    },
    "Llama-3.2-1B": {
        "model_type": "llama", "vocab_size": 128256, **_sizes(2048, 8192, 16, 32, 8, 64), "tie_word_embeddings": True,
        "max_position_embeddings": 131072, **_rope(5e5, "llama3", factor=32.0, **_LLAMA3),
    },
    "TinyLlama-1.1B": {"model_type": "llama", "vocab_size": 32000, **_sizes(2048, 5632, 22, 32, 4)},
    "SmolLM2-1.7B": {
        "model_type": "llama", "vocab_size": 49152, **_sizes(2048, 8192, 24, 32), **_rope(130000.0),
        "max_position_embeddings": 8192, "tie_word_embeddings": True,
    },
    "SmolLM3-3B": {
        "model_type": "smollm3", "vocab_size": 128256, **_sizes(2048, 11008, 36, 16, 4), **_rope(5e6),
        "max_position_embeddings": 65536, "no_rope_layer_interval": 4, "tie_word_embeddings": True,
    },
    "Llama-4-Scout (text)": {
        "model_type": "llama4_text", "vocab_size": 202048, **_sizes(5120, 8192, 48, 40, 8, 128),
        "intermediate_size_mlp": 16384, "num_local_experts": 16, "num_experts_per_tok": 1, "use_qk_norm": True,
        "attention_chunk_size": 8192, "interleave_moe_layer_step": 1,
    },
    "Qwen2.5-0.5B": {
        "model_type": "qwen2", "vocab_size": 151936, **_sizes(896, 4864, 24, 14, 2), **_rope(1e6),
        "max_position_embeddings": 32768, "tie_word_embeddings": True,
    },
    "Qwen2.5-7B": {
        "model_type": "qwen2", "vocab_size": 152064, **_sizes(3584, 18944, 28, 28, 4), **_rope(1e6),
        "max_position_embeddings": 131072, "use_sliding_window": False,
    },
    "Qwen3-0.6B": {
        "model_type": "qwen3", "vocab_size": 151936, **_sizes(1024, 3072, 28, 16, 8, 128), **_rope(1e6),
        "max_position_embeddings": 40960, "tie_word_embeddings": True,
    },
    "Qwen3-30B-A3B": {
        "model_type": "qwen3_moe", "vocab_size": 151936, **_sizes(2048, 6144, 48, 32, 4, 128), **_rope(1e6),
        **_experts(128, 8, 768), "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [],
    },
    "Qwen3-Next-80B-A3B": {
        "model_type": "qwen3_next", "vocab_size": 151936, **_sizes(2048, 5120, 48, 16, 2, 256),
        **_experts(512, 10, 512), "shared_expert_intermediate_size": 512, "linear_num_key_heads": 16,
        "linear_num_value_heads": 32, "linear_key_head_dim": 128, "linear_value_head_dim": 128,
    },
    "Mistral-7B-v0.1": {
        "model_type": "mistral", "vocab_size": 32000, **_sizes(4096, 14336, 32, 32, 8), "sliding_window": 4096,
    },
    "Mistral-Nemo-12B": {
        "model_type": "mistral", "vocab_size": 131072, **_sizes(5120, 14336, 40, 32, 8, 128), **_rope(1e6),
        "sliding_window": None, "max_position_embeddings": 131072,
    },
    "Mixtral-8x7B": {
        "model_type": "mixtral", "vocab_size": 32000, **_sizes(4096, 14336, 32, 32, 8), **_rope(1e6),
        "num_local_experts": 8, "num_experts_per_tok": 2, "output_router_logits": True, "router_aux_loss_coef": 0.02,
    },
    "gemma-2b": {"model_type": "gemma", "vocab_size": 256000, **_sizes(2048, 16384, 18, 8, 1, 256)},
    "gemma-2-9b": {
        "model_type": "gemma2", "vocab_size": 256000, **_sizes(3584, 14336, 42, 16, 8, 256), "sliding_window": 4096,
        "query_pre_attn_scalar": 256, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
    },
    "gemma-3-1b": {
        "model_type": "gemma3_text", "vocab_size": 262144, **_sizes(1152, 6912, 26, 4, 1, 256), "sliding_window": 512,
        "query_pre_attn_scalar": 256, "max_position_embeddings": 32768,
    },
    "phi-1_5": {
        "model_type": "phi", "vocab_size": 51200, **_sizes(2048, 8192, 24, 32), "partial_rotary_factor": 0.5,
    },
    "Phi-3-mini-4k": {
        "model_type": "phi3", "vocab_size": 32064, **_sizes(3072, 8192, 32, 32), "sliding_window": 2047,
        "max_position_embeddings": 4096,
    },
    "Phi-3.5-mini": {"model_type": "phi3", "vocab_size": 32064, **_sizes(3072, 8192, 32, 32), **_LONGROPE},
    "Phi-3.5-MoE": {
        "model_type": "phimoe", "vocab_size": 32064, **_sizes(4096, 6400, 32, 32, 8), "num_local_experts": 16,
        "num_experts_per_tok": 2, "sliding_window": 131072, "router_jitter_noise": 0.01, "input_jitter_noise": 0.01,
    },
    "phi-4": {
        "model_type": "phi3", "vocab_size": 100352, **_sizes(5120, 17920, 40, 40, 10), **_rope(250000.0),
        "max_position_embeddings": 16384,
    },
    "gpt2": {"model_type": "gpt2", "vocab_size": 50257, "n_embd": 768, "n_layer": 12, "n_head": 12},
    "gpt-j-6b": {
        "model_type": "gptj", "vocab_size": 50400, "n_embd": 4096, "n_layer": 28, "n_head": 16, "rotary_dim": 64,
    },
    "pythia-1.4b": {
        "model_type": "gpt_neox", "vocab_size": 50304, **_sizes(2048, 8192, 24, 16),
        **_rope(1e4, partial_rotary_factor=0.25),
    },
    "opt-1.3b": {
        "model_type": "opt", "vocab_size": 50272, "hidden_size": 2048, "ffn_dim": 8192, "num_hidden_layers": 24,
        "num_attention_heads": 32, "word_embed_proj_dim": 2048, "dropout": 0.1,
    },
    "bloom-7b1": {"model_type": "bloom", "vocab_size": 250880, "hidden_size": 4096, "n_layer": 30, "n_head": 32},
    "falcon-7b": {
        "model_type": "falcon", "vocab_size": 65024, "hidden_size": 4544, "num_hidden_layers": 32,
        "num_attention_heads": 71, "multi_query": True, "parallel_attn": True, "alibi": False,
    },
    "mpt-7b": {
        "model_type": "mpt", "vocab_size": 50432, "d_model": 4096, "n_heads": 32, "n_layers": 32, "expansion_ratio": 4,
    },
    "starcoder2-3b": {
        "model_type": "starcoder2", "vocab_size": 49152, **_sizes(3072, 12288, 30, 24, 2), "sliding_window": 4096,
        "max_position_embeddings": 16384, "embedding_dropout": 0.1, "residual_dropout": 0.1,
    },
    "stablelm-2-1_6b": {
        "model_type": "stablelm", "vocab_size": 100352, **_sizes(2048, 5632, 24, 32), "use_qkv_bias": True,
        **_rope(1e4, partial_rotary_factor=0.25),
    },
    "OLMo-2-7B": {"model_type": "olmo2", "vocab_size": 100352, **_sizes(4096, 11008, 32, 32), **_rope(5e5)},
    "OLMoE-1B-7B": {
        "model_type": "olmoe", "vocab_size": 50304, **_sizes(2048, 1024, 16, 16), **_experts(64, 8),
        "router_aux_loss_coef": 0.01,
    },
    "granite-3.1-2b": {
        "model_type": "granite", "vocab_size": 49155, **_sizes(2048, 8192, 40, 32, 8), "embedding_multiplier": 12.0,
        "attention_multiplier": 0.015625, "residual_multiplier": 0.22, "logits_scaling": 8.0,
    },
    "Jamba-v0.1": {
        "model_type": "jamba", "vocab_size": 65536, **_sizes(4096, 14336, 32, 32, 8), **_experts(16, 2),
        "attn_layer_period": 8, "attn_layer_offset": 4, "expert_layer_period": 2, "expert_layer_offset": 1,
        "mamba_dt_rank": 256, "use_mamba_kernels": False,
    },
    "mamba-2.8b": {
        "model_type": "mamba", "vocab_size": 50280, "hidden_size": 2560, "intermediate_size": 5120,
        "num_hidden_layers": 64, "time_step_rank": 160,
    },
    "DeepSeek-V2-Lite": {
        "model_type": "deepseek_v2", "vocab_size": 102400, **_sizes(2048, 10944, 27, 16), **_LATENT,
        "q_lora_rank": None, "moe_intermediate_size": 1408, "n_routed_experts": 64, "n_shared_experts": 2,
        "num_experts_per_tok": 6, "first_k_dense_replace": 1, "topk_method": "greedy",
    },
    "DeepSeek-V3": {
        "model_type": "deepseek_v3", "vocab_size": 129280, **_sizes(7168, 18432, 61, 128), **_LATENT,
        "q_lora_rank": 1536, "moe_intermediate_size": 2048, "n_routed_experts": 256, "n_shared_experts": 1,
        "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4, "first_k_dense_replace": 3,
    },
    "gpt-oss-20b": {
        "model_type": "gpt_oss", "vocab_size": 201088, **_sizes(2880, 2880, 24, 64, 8, 64), "num_local_experts": 32,
        "num_experts_per_tok": 4, "sliding_window": 128,
    },
    "GLM-4-9B-0414": {
        "model_type": "glm4", "vocab_size": 151552, **_sizes(4096, 13696, 40, 32, 2, 128), "attention_bias": True,
    },
    "GLM-4.5-Air": {
        "model_type": "glm4_moe", "vocab_size": 151552, **_sizes(4096, 10944, 46, 96, 8, 128),
        "moe_intermediate_size": 1408, "n_routed_experts": 128, "num_experts_per_tok": 8, "n_shared_experts": 1,
        "first_k_dense_replace": 1,
    },
    "c4ai-command-r7b": {
        "model_type": "cohere2", "vocab_size": 256000, **_sizes(4096, 14336, 32, 32, 8, 128), "sliding_window": 4096,
        "logit_scale": 0.25,
    },
    "rwkv-4-430m": {
        "model_type": "rwkv", "vocab_size": 50277, "hidden_size": 1024, "attention_hidden_size": 1024,
        "intermediate_size": 4096, "num_hidden_layers": 24, "context_length": 1024,
    },
}  # fmt: skip
"""Fields with ``model_type``, by the name under which the model is known."""

_QWEN_VISION = {"hidden_size": 1280, "depth": 32, "num_heads": 16, "patch_size": 14, "spatial_merge_size": 2}
_MROPE = {"rope_theta": 1e6, "rope_type": "default", "mrope_section": [16, 24, 24]}

MULTIMODAL: Dict[str, Dict[str, Any]] = {
    "gemma-3-4b-it": {
        "model_type": "gemma3", "mm_tokens_per_image": 256, "image_token_index": 262144, "text_config": {
            "model_type": "gemma3_text", "vocab_size": 262208, **_sizes(2560, 10240, 34, 8, 4, 256),
            "sliding_window": 1024, "max_position_embeddings": 131072},
        "vision_config": {
            "model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304,
            "num_hidden_layers": 27, "num_attention_heads": 16, "image_size": 896, "patch_size": 14},
    },
    "Qwen2-VL-2B": {
        "model_type": "qwen2_vl", "vocab_size": 151936, **_sizes(1536, 8960, 28, 12, 2), "rope_theta": 1e6,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}, "image_token_id": 151655,
        "tie_word_embeddings": True,
        "vision_config": {"embed_dim": 1280, "hidden_size": 1536, "depth": 32, "num_heads": 16, "mlp_ratio": 4},
    },
    "Qwen2.5-VL-7B": {
        "model_type": "qwen2_5_vl", "vocab_size": 152064, **_sizes(3584, 18944, 28, 28, 4), "rope_theta": 1e6,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}, "image_token_id": 151655,
        "vision_config": {
            **_QWEN_VISION, "intermediate_size": 3420, "out_hidden_size": 3584, "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31]},
    },
    "Qwen3-VL-8B": {
        "model_type": "qwen3_vl", "image_token_id": 151655, "text_config": {
            "model_type": "qwen3_vl_text", "vocab_size": 151936, **_sizes(4096, 12288, 36, 32, 8, 128),
            "rope_parameters": {**_MROPE, "rope_theta": 5e6, "mrope_section": [24, 20, 20], "mrope_interleaved": True}},
        "vision_config": {
            "model_type": "qwen3_vl", "hidden_size": 1152, "intermediate_size": 4304, "depth": 27, "num_heads": 16,
            "out_hidden_size": 4096, "deepstack_visual_indexes": [8, 16, 24], "num_position_embeddings": 2304},
    },
    "Qwen3-VL-30B-A3B": {
        "model_type": "qwen3_vl_moe", "image_token_id": 151655, "text_config": {
            "model_type": "qwen3_vl_moe_text", "vocab_size": 151936, **_sizes(2048, 6144, 48, 32, 4, 128),
            **_experts(128, 8, 768),
            "rope_parameters": {**_MROPE, "rope_theta": 5e6, "mrope_section": [24, 20, 20], "mrope_interleaved": True}},
        "vision_config": {
            "model_type": "qwen3_vl_moe", "hidden_size": 1152, "intermediate_size": 4304, "depth": 27, "num_heads": 16,
            "out_hidden_size": 2048, "deepstack_visual_indexes": [8, 16, 24], "num_position_embeddings": 2304},
    },
    "chameleon-7b": {
        "model_type": "chameleon", "vocab_size": 65536, **_sizes(4096, 11008, 32, 32), "swin_norm": False,
        "vocabulary_map": {"<image>": 8711, **{f"IMGIMG{'ABCD'[i]}Z": 4 + i for i in range(4)}},
    },
    "Emu3-Chat": {
        "model_type": "emu3", "text_config": {
            "model_type": "emu3_text_model", "vocab_size": 184622, **_sizes(4096, 14336, 32, 32, 8)},
        "vocabulary_map": {
            "<image>": 151850, "<|extra_200|>": 151846,
            **{f"<|visual token {i:06d}|>": 151854 + i for i in range(4)}},
    },
    "Mistral-Small-3.1-24B": {
        "model_type": "mistral3", "image_token_index": 10, "spatial_merge_size": 2, "vision_feature_layer": -1,
        "text_config": {
            "model_type": "mistral", "vocab_size": 131072, **_sizes(5120, 32768, 40, 32, 8, 128),
            "sliding_window": None, "max_position_embeddings": 131072},
        "vision_config": {
            "model_type": "pixtral", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
            "num_attention_heads": 16, "head_dim": 64, "image_size": 1540, "patch_size": 14},
    },
    "Llama-4-Scout-17B-16E": {
        "model_type": "llama4", "image_token_index": 200092, "text_config": {
            **CONFIGS["Llama-4-Scout (text)"]},
        "vision_config": {
            "model_type": "llama4_vision_model", "hidden_size": 1408, "intermediate_size": 5632,
            "num_hidden_layers": 34, "num_attention_heads": 16, "image_size": 336, "patch_size": 14,
            "projector_input_dim": 4096, "projector_output_dim": 4096, "vision_output_dim": 4096},
    },
    "llava-1.5-7b-hf": {
        "model_type": "llava", "image_token_index": 32000, "text_config": {
            "model_type": "llama", "vocab_size": 32064, **_sizes(4096, 11008, 32, 32)},
        "vision_config": {
            "model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
            "num_attention_heads": 16, "image_size": 336, "patch_size": 14, "projection_dim": 768},
    },
    "SmolVLM-Instruct": {
        "model_type": "idefics3", "image_token_id": 49153, "scale_factor": 3, "text_config": {
            "model_type": "llama", "vocab_size": 49155, **_sizes(2048, 8192, 24, 32), "pad_token_id": 2},
        "vision_config": {
            "model_type": "idefics3_vision", "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27,
            "num_attention_heads": 16, "image_size": 384, "patch_size": 14},
    },
}  # fmt: skip
"""The same for models that read images as well, with the fields of their parts."""
