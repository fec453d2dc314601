"""The model families that can be written as GGUF, and their settings under llama.cpp's keys.

llama.cpp reads some settings from the file (``src/models/*.cpp``, ``src/llama-vocab.cpp``). Others are constants in its
code, for instance which layers of Gemma have a window. A model whose value differs from such a constant is refused.
"""

from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Tuple

import torch
from transformers import PretrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from ftdist.base.errors import ConfigError

LOCAL_THETA = 10000.0
"""Base of the rotary embedding in the layers of Gemma 3 that have a window: a constant in llama.cpp."""
LARGEST = {"gemma2": 46, "gemma3_text": 62}
"""Number of layers of the models with 27B parameters, for which llama.cpp scales the scores in another way."""
ACTIVATIONS = ("silu", "swish", "gelu_pytorch_tanh")


@dataclass(frozen=True)
class Family:
    """How a family is written."""

    arch: str
    """Its name in llama.cpp."""
    permuted: bool = False
    """The rows of q and k are reordered: llama.cpp's rotary embedding rotates neighboring rows as pairs, and that of
    transformers pairs a row of the first half with a row of the second half."""
    norm_shift: float = 0.0
    """Added to the weights of norms: Gemma computes with 1 + weight, llama.cpp with the weight."""
    full_every: int = 0
    """Every n-th layer sees all tokens, the others a window. 0: the layers are equal."""
    read: bool = True
    """Whether transformers reads GGUF files of this family."""


FAMILIES = {
    "llama": Family("llama", permuted=True),
    "mistral": Family("llama", permuted=True),
    "smollm3": Family("smollm3", permuted=True, read=False),
    "qwen2": Family("qwen2"),
    "qwen3": Family("qwen3"),
    "gemma": Family("gemma", norm_shift=1.0, read=False),
    "gemma2": Family("gemma2", norm_shift=1.0, full_every=2),
    "gemma3_text": Family("gemma3", norm_shift=1.0, full_every=6),
}
"""By ``model_type`` of the language part. SmolLM 1 and 2 are ``llama``."""


def family_of(arch: PretrainedConfig, llama_cpp: str) -> Family:
    """Return how a model is written.

    Args:
        llama_cpp: The commands with which llama.cpp converts the export.

    Raises:
        ConfigError: The family is not known here, or the model has a setting that a GGUF file cannot express.
    """
    text = arch.get_text_config()
    known = arch is text or arch.model_type == "gemma3"
    family = FAMILIES.get(text.model_type) if known else None
    if family is None:
        raise ConfigError(f"--gguf: ftdist does not write GGUF files of {arch.model_type} models",
                          ", ".join(FAMILIES), llama_cpp)  # fmt: skip
    problem = _not_expressible(text, family)
    if problem:
        raise ConfigError(f"--gguf: llama.cpp cannot compute this model: {problem}", "the family's usual settings",
                          "use the export in Hugging Face format: ftdist export RUN_DIR")  # fmt: skip
    return family


def _not_expressible(text: Any, family: Family) -> str:
    """Return why llama.cpp cannot compute a model, as a clause for the message. Empty: it can."""
    activation = getattr(text, "hidden_activation", None) or text.hidden_act
    layers = range(text.num_hidden_layers)
    if activation not in ACTIVATIONS or (activation == ACTIVATIONS[-1]) != (family.norm_shift > 0):
        return f"the activation is {activation}"
    rope = rope_of(text)
    kind = rope.get("rope_type", "default")
    if kind not in ("default", "linear", "yarn", "llama3") or (kind == "llama3" and family.arch != "llama"):
        return f"the rotary embedding is of type {kind}"
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        return "only a part of each head is rotated"
    other = {"attention_factor", "mscale", "mscale_all_dim", "beta_fast", "beta_slow"} & rope.keys()
    if kind == "yarn" and any(rope[name] is not None for name in other):
        return f"the rotary embedding has its own {min(other)}"
    if family.full_every:
        full = ["sliding_attention" if (n + 1) % family.full_every else "full_attention" for n in layers]
        if list(text.layer_types) != full:
            return f"the layers without a window are not every {family.full_every}th layer"
        hidden = text.hidden_size // text.num_attention_heads
        scalar = hidden if text.num_hidden_layers == LARGEST[text.model_type] else text.head_dim
        if text.query_pre_attn_scalar != scalar:
            return f"query_pre_attn_scalar is {text.query_pre_attn_scalar}; llama.cpp uses {scalar}"
    if text.model_type == "gemma3_text":
        local = (text.rope_parameters or {}).get("sliding_attention", {}).get("rope_theta", LOCAL_THETA)
        if local != LOCAL_THETA or text.final_logit_softcapping or text.attn_logit_softcapping:
            return f"its layers with a window do not have rope_theta={LOCAL_THETA:g}, or it caps its logits"
    if text.model_type == "smollm3" and list(text.no_rope_layers) != [int((n + 1) % 4 != 0) for n in layers]:
        return "the layers without a rotary embedding are not every 4th layer"
    return ""


def rope_of(text: Any) -> Dict[str, Any]:
    """Return the settings of the rotary embedding. If layers have different ones, return those of full attention."""
    rope = dict(text.rope_parameters or {})
    return dict(rope.get("full_attention", rope))


def head_size(text: Any) -> int:
    return getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads


def context_length(text: Any, family: Family) -> int:
    """Return the largest number of tokens that llama.cpp may use.

    llama.cpp has no window in the families whose layers are equal: a longer context would compute other numbers.
    """
    windowed = "sliding_attention" in (getattr(text, "layer_types", None) or ["sliding_attention"])
    window = getattr(text, "sliding_window", None) if not family.full_every and windowed else None
    return min(text.max_position_embeddings, window or text.max_position_embeddings)


def settings_of(text: Any, family: Family) -> Dict[str, Any]:
    """Return the settings of a model by llama.cpp's keys, without the name of the architecture before them."""
    size = head_size(text)
    values: Dict[str, Any] = {
        "context_length": context_length(text, family), "embedding_length": text.hidden_size,
        "block_count": text.num_hidden_layers, "feed_forward_length": text.intermediate_size,
        "attention.head_count": text.num_attention_heads, "attention.head_count_kv": text.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": float(text.rms_norm_eps), "attention.key_length": size,
        "attention.value_length": size, "rope.dimension_count": size, "vocab_size": text.vocab_size,
        "rope.freq_base": float(rope_of(text)["rope_theta"]),
    }  # fmt: skip
    if family.full_every:
        values["attention.sliding_window"] = text.sliding_window
    for key, name in (("attn", "attn_logit_softcapping"), ("final", "final_logit_softcapping")):
        if getattr(text, name, None):
            values[f"{key}_logit_softcapping"] = float(getattr(text, name))
    rope = rope_of(text)
    if rope.get("rope_type") in ("linear", "yarn"):
        values |= {"rope.scaling.type": rope["rope_type"], "rope.scaling.factor": float(rope["factor"])}
    if rope.get("rope_type") == "yarn":
        values["rope.scaling.original_context_length"] = int(rope["original_max_position_embeddings"])
    return values


READ_FIELDS = {
    "max_position_embeddings": "context_length", "hidden_size": "embedding_length", "vocab_size": "vocab_size",
    "num_hidden_layers": "block_count", "intermediate_size": "feed_forward_length", "rope_theta": "rope.freq_base",
    "num_attention_heads": "attention.head_count", "num_key_value_heads": "attention.head_count_kv",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon", "head_dim": "attention.key_length",
    "sliding_window": "attention.sliding_window",
}  # fmt: skip
"""The fields of a config that transformers reads from a GGUF file, and llama.cpp's keys of them."""


def rope_factors(text: Any) -> Optional[torch.Tensor]:
    """Return the numbers by which llama.cpp divides the frequencies of Llama 3's rotary embedding, [head size / 2]."""
    if rope_of(text).get("rope_type") != "llama3":
        return None
    size = head_size(text)
    plain = rope_of(text)["rope_theta"] ** -(torch.arange(0, size, 2, dtype=torch.float64) / size)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](text, torch.device("cpu"))
    return (plain / scaled.double()).float()


def tensor_names(family: Family, layers: int, names: List[str]) -> Dict[str, str]:
    """Return llama.cpp's name of each tensor of the language part.

    Args:
        names: Names of the tensors of the model. Those of parts for images are left out.

    Raises:
        ConfigError: A tensor has no place in the file.
    """
    from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, get_tensor_name_map

    arch = next(key for key in MODEL_ARCH if MODEL_ARCH_NAMES.get(key) == family.arch)
    places = get_tensor_name_map(arch, layers)
    found = {}
    for name in names:
        if name.startswith(("model.vision_tower.", "model.multi_modal_projector.")):
            continue
        place = places.get_name(name.replace("model.language_model.", "model."), try_suffixes=(".weight", ".bias"))
        if place is None:
            raise ConfigError(f"--gguf: llama.cpp has no tensor for '{name}'", "the tensors of the family",
                              "use the export in Hugging Face format: ftdist export RUN_DIR")  # fmt: skip
        found[name] = place
    return found


def to_llama_cpp(place: str, tensor: torch.Tensor, family: Family, heads: Tuple[int, int]) -> torch.Tensor:
    """Return a tensor in fp32 as llama.cpp wants it.

    Args:
        place: Name in the file.
        heads: Number of query heads, and of key-value heads.
    """
    tensor = tensor.float()
    if place.endswith("norm.weight"):
        return tensor + family.norm_shift
    number = _permuted_heads(place, family, heads)
    if not number:
        return tensor
    halves = tensor.reshape(number, 2, tensor.shape[0] // number // 2, *tensor.shape[1:])
    return halves.transpose(1, 2).reshape(tensor.shape)


def from_llama_cpp(place: str, tensor: torch.Tensor, family: Family, heads: Tuple[int, int]) -> torch.Tensor:
    """Return a tensor of a file as transformers wants it: the inverse of ``to_llama_cpp``."""
    if place.endswith("norm.weight"):
        return tensor - family.norm_shift
    number = _permuted_heads(place, family, heads)
    if not number:
        return tensor
    pairs = tensor.reshape(number, tensor.shape[0] // number // 2, 2, *tensor.shape[1:])
    return pairs.transpose(1, 2).reshape(tensor.shape)


def _permuted_heads(place: str, family: Family, heads: Tuple[int, int]) -> int:
    if not family.permuted:
        return 0
    return heads[0] if ".attn_q." in place else heads[1] if ".attn_k." in place else 0
