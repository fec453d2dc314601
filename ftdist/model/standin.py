"""A small model of the same architecture: every kind of layer once, heads grouped alike, few weights."""

import math
from typing import Any, Dict, List, Tuple

from transformers import AutoConfig, PretrainedConfig

SIZES = {"hidden_size": 64, "intermediate_size": 128, "moe_intermediate_size": 32, "head_dim": 16, "sliding_window": 16,
         "num_local_experts": 4, "num_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "q_lora_rank": 32,
         "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16, "n_inner": 128,
         "query_pre_attn_scalar": 16}  # fmt: skip
HEADS = 4
NO_CONFIG = ("id2label", "label2id", "dtype", "torch_dtype", "architectures", "transformers_version", "_name_or_path",
             "quantization_config", "auto_map")  # fmt: skip
OTHER_HEADS = ("summary_", "classifier_", "cls_")
"""What fields of heads begin with that a causal language model has not."""

# By the name of a hub repository that cannot be read here: which class of transformers it is of.
FAMILIES = (("smollm3", "smollm3"), ("smollm", "llama"), ("tinyllama", "llama"), ("llama", "llama"), ("qwen3", "qwen3"),
            ("qwen2", "qwen2"), ("gemma3", "gemma3_text"), ("gemma2", "gemma2"), ("mixtral", "mixtral"),
            ("mistral", "mistral"), ("phi4", "phi3"), ("phi3", "phi3"), ("olmo2", "olmo2"), ("gptneox", "gpt_neox"),
            ("pythia", "gpt_neox"), ("gpt2", "gpt2"))  # fmt: skip


def class_by_name(repository: str) -> str:
    """The model type that a repository's name speaks of; empty where it says nothing."""
    name = repository.rpartition("/")[2].lower().replace("-", "").replace("_", "").replace(".", "")
    return next((model_type for part, model_type in FAMILIES if part in name), "")


def default_architecture(model_type: str) -> PretrainedConfig:
    return AutoConfig.for_model(model_type)


def standin(arch: PretrainedConfig, vocab_size: int) -> Dict[str, Any]:
    """``model.config`` of a small model of the same class (``model_type`` and its fields), without dropout."""
    text = arch.get_text_config()
    fields = {name: value for name, value in text.to_dict().items() if name not in NO_CONFIG}
    names = {getattr(text, "attribute_map", {}).get(name, name): value for name, value in SIZES.items()}
    for name, size in names.items():
        if isinstance(fields.get(name), int) and not isinstance(fields[name], bool):
            fields[name] = min(fields[name], size)
    heads, kv_heads = text.num_attention_heads, getattr(text, "num_key_value_heads", None)
    _set(text, fields, "num_attention_heads", HEADS)
    if kv_heads:
        _set(text, fields, "num_key_value_heads", max(1, math.ceil(HEADS * kv_heads / heads)))
    kinds = _layer_kinds(fields)
    _set(text, fields, "num_hidden_layers", len(kinds) or 2)
    if kinds:
        fields["layer_types"] = kinds
    for name in dropouts(text):
        fields[name] = 0.0
    _set(text, fields, "vocab_size", vocab_size)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        fields[name] = None  # the real ones may lie beyond the vocabulary; the tokenizer's are used
    return {**fields, "model_type": text.model_type}


def dropouts(arch: PretrainedConfig) -> List[str]:
    """Names of the model's dropouts that are not 0: no two forwards are alike with them."""
    fields = arch.get_text_config().to_dict().items()
    found = [name for name, value in fields if ("dropout" in name or "pdrop" in name) and value]
    return [name for name in found if not name.startswith(OTHER_HEADS)]


def count_parameters(arch: PretrainedConfig) -> int:
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return sum(p.numel() for p in AutoModelForCausalLM.from_config(arch).parameters())


def _layer_kinds(fields: Dict[str, Any]) -> List[str]:
    """Each kind of layer once (sliding and full attention, for one), at least two layers."""
    kinds = list(dict.fromkeys(fields.get("layer_types") or []))
    return kinds * 2 if len(kinds) == 1 else kinds


def _set(arch: PretrainedConfig, fields: Dict[str, Any], name: str, value: int) -> None:
    fields[getattr(arch, "attribute_map", {}).get(name, name)] = value


def fits(parameters: int, ranks: int, memory: int) -> Tuple[bool, str]:
    """Whether the real model can be checked here: weights, gradients, fp32 masters and moments on each rank at the
    worst, the reference beside them, in half of the memory."""
    needed = parameters * (20 * ranks + 20)
    return needed <= memory / 2, f"{needed / 2**30:.1f} GiB for {parameters / 1e6:,.0f}M parameters on {ranks} ranks"
