"""Fields of configs that change the attention of widely used types: ``python -m tests.models.fields [NAME…]``.

Each variant of a tiny model goes through what ``tests.models.alone`` examines: the loss and the gradients of a packed
micro-batch, as a run computes them, are those of plain transformers with eager attention, one document at a time.
"""

import sys
from functools import partial
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from tests.models.alone import Outcome, examine
from tests.models.suite import examine_all, prepared_folder

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
}  # fmt: skip
"""By name the type, and the fields that get another value."""
REFUSED = {
    "falcon, alibi": "its logits with eager attention, which training is compared with, differ",
    "gemma, both directions": "gemma reads text in both directions",
    "gemma3_text, both directions": "tokens of gemma3_text can see later tokens",
}
"""Variants that are refused, and a part of the reason. transformers 5.23 adds the biases of Falcon twice with eager
attention."""
ROWS = ("gpt_neox, rope dynamic", "llama, rope dynamic", "llama, rope longrope", "llama4_text, short chunks",
        "phi3, longrope")  # fmt: skip
"""Variants in which each document must be a row of its own."""
CI = ("falcon, alibi", "llama, rope dynamic", "qwen2, sliding")
"""Variants that CI checks each time."""


def run(names: List[str], jobs: int = 2) -> Dict[str, Outcome]:
    """Return the outcome of each variant."""
    with prepared_folder() as folder:
        return examine_all({name: partial(_in_a_folder, name) for name in names}, jobs, folder)


def _in_a_folder(name: str, folder: Path) -> Outcome:
    model_type, changed = VARIANTS[name]
    (own := folder / name).mkdir()
    (own / "cache").symlink_to(folder / "cache")
    return examine(model_type, own, changed)


def main(argv: Optional[List[str]] = None) -> int:
    chosen = sys.argv[1:] if argv is None else argv
    found = run(chosen or list(VARIANTS))
    for name, outcome in found.items():
        print(f"{name:32} {outcome.result:8} {outcome.attention:42} {outcome.checkpointing:14} {outcome.note[:160]}")
    return int(any(outcome.result == "wrong" for outcome in found.values()))


if __name__ == "__main__":
    sys.exit(main())
