"""Small stand-in models. A stand-in has the architecture of a model with every kind of its layers, but few weights."""

import math
from typing import Any, Dict, List, Tuple

from transformers import AutoConfig, PretrainedConfig

from ftdist.config.schema import Precision, ZeroConfig
from ftdist.plan.layout import Layout
from ftdist.plan.memory import rank_memory
from ftdist.plan.optimizers import OptimizerSpec

SIZES = {"hidden_size": 64, "intermediate_size": 128, "moe_intermediate_size": 32, "head_dim": 16, "sliding_window": 16,
         "num_local_experts": 4, "num_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "q_lora_rank": 32,
         "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16, "n_inner": 128,
         "query_pre_attn_scalar": 16}  # fmt: skip
"""Maximum sizes of a stand-in."""
HEADS = 4
# Fields that are not copied: they do not describe the architecture.
OMITTED_FIELDS = ("id2label", "label2id", "dtype", "torch_dtype", "architectures", "transformers_version",
                  "_name_or_path", "quantization_config", "auto_map")  # fmt: skip
OTHER_HEADS = ("summary_", "classifier_", "cls_")
"""Prefixes of fields that belong to heads which a causal language model does not have."""

# A part of a repository name and the model type that it means. The first match counts.
FAMILIES = (("smollm3", "smollm3"), ("smollm", "llama"), ("tinyllama", "llama"), ("llama", "llama"), ("qwen3", "qwen3"),
            ("qwen2", "qwen2"), ("gemma3", "gemma3_text"), ("gemma2", "gemma2"), ("mixtral", "mixtral"),
            ("mistral", "mistral"), ("phi4", "phi3"), ("phi3", "phi3"), ("olmo2", "olmo2"), ("gptneox", "gpt_neox"),
            ("pythia", "gpt_neox"), ("gpt2", "gpt2"))  # fmt: skip


def model_type_from_name(repository: str) -> str:
    """Guess the model type from the name of a hub repository. Returns an empty string if the name is unknown.

    This is for repositories that cannot be read from this machine.
    """
    name = repository.rpartition("/")[2].lower().replace("-", "").replace("_", "").replace(".", "")
    return next((model_type for part, model_type in FAMILIES if part in name), "")


def default_model_config(model_type: str) -> PretrainedConfig:
    """Return the config of a model type with its default sizes."""
    return AutoConfig.for_model(model_type)


def standin_config(arch: PretrainedConfig, vocab_size: int) -> Dict[str, Any]:
    """Return the value of ``model.config`` for the stand-in of a model, without dropout.

    The number of key-value heads is reduced in proportion to the number of heads.

    Args:
        arch: Config of the real model.
        vocab_size: Number of rows of the stand-in's embedding.
    """
    text = arch.get_text_config()
    fields = {name: value for name, value in text.to_dict().items() if name not in OMITTED_FIELDS}
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
    for name in active_dropouts(text):
        fields[name] = 0.0
    _set(text, fields, "vocab_size", vocab_size)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        fields[name] = None  # those of the model can be outside of this vocabulary; only the tokenizer's are used
    return {**fields, "model_type": text.model_type}


def active_dropouts(arch: PretrainedConfig) -> List[str]:
    """Return the names of the dropout fields that are not 0. With dropout, two forwards never give the same result."""
    fields = arch.get_text_config().to_dict().items()
    found = [name for name, value in fields if ("dropout" in name or "pdrop" in name) and value]
    return [name for name in found if not name.startswith(OTHER_HEADS)]


def count_parameters(arch: PretrainedConfig) -> int:
    """Return the number of parameters of a model, without creating its weights."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return sum(p.numel() for p in AutoModelForCausalLM.from_config(arch).parameters())


def _layer_kinds(fields: Dict[str, Any]) -> List[str]:
    """Return each value of ``layer_types`` once (for example sliding and full attention), but at least two layers."""
    kinds = list(dict.fromkeys(fields.get("layer_types") or []))
    return kinds * 2 if len(kinds) == 1 else kinds


def _set(arch: PretrainedConfig, fields: Dict[str, Any], name: str, value: int) -> None:
    fields[getattr(arch, "attribute_map", {}).get(name, name)] = value


def fits_in_memory(parameters: int, ranks: int, memory: int, optimizer: OptimizerSpec) -> Tuple[bool, str]:
    """Whether a real model can be verified on this machine, using half of the memory.

    In the worst case, each rank holds all weights, gradients, master weights and optimizer states, all in fp32. The
    reference needs the same once more.

    Args:
        parameters: Number of parameters.
        ranks: Number of ranks.
        memory: Free memory in bytes.
        optimizer: What the optimizer keeps for a parameter.

    Returns:
        ``(fits, description of the memory that is needed)``.
    """
    one = rank_memory(parameters, parameters, Precision.fp32, ZeroConfig(stage=1), Layout.of_world(1), optimizer)
    needed = one.device.total * (ranks + 1)
    return needed <= memory / 2, f"{needed / 2**30:.1f} GiB for {parameters / 1e6:,.0f}M parameters on {ranks} ranks"
