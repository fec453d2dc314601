"""Exports for programs that read the files of transformers 4: fields of version 5 are also in their old place.

transformers 5 keeps all settings of rotary embeddings in ``rope_parameters``, and calls a tokenizer without a class
of its own ``TokenizersBackend``. transformers 4, and programs that read ``config.json`` themselves (vLLM, the
converter of llama.cpp), look for ``rope_theta`` and ``rope_scaling``. Without them they use the default of the
architecture and say nothing.
"""

from pathlib import Path
from typing import Any, Dict

from ftdist.base.json_files import read_json, write_json

TESTED = "4.57 and 5.23"
"""Versions of transformers with which the tests open an export."""
LOCAL, GLOBAL = "sliding_attention", "full_attention"


def write_old_fields(folder: Path) -> None:
    """Add the fields of transformers 4 to the config and the tokenizer of an export."""
    config = read_json(folder / "config.json")
    for part in (config, config.get("text_config")):
        if isinstance(part, dict):
            _add_old_fields(part)
    write_json(folder / "config.json", config)
    file = folder / "tokenizer_config.json"
    if not file.is_file():
        return
    tokenizer = read_json(file)
    if tokenizer.get("tokenizer_class") == "TokenizersBackend":
        tokenizer["tokenizer_class"] = "PreTrainedTokenizerFast"  # both versions have it
    if isinstance(tokenizer.get("extra_special_tokens"), list):  # version 4 reads a dict here, and fails
        tokenizer["additional_special_tokens"] = tokenizer.pop("extra_special_tokens")
    write_json(file, tokenizer)


def _add_old_fields(config: Dict[str, Any]) -> None:
    if "dtype" in config:
        config["torch_dtype"] = config["dtype"]
    if "num_local_experts" in config and "moe" in str(config.get("model_type")):
        config["num_experts"] = config["num_local_experts"]  # its name in Qwen's and OLMo's mixtures of experts
    rope = config.get("rope_parameters")
    if not isinstance(rope, dict):
        return
    if GLOBAL in rope:  # one set of parameters for each kind of layer, as in Gemma 3
        if LOCAL in rope:
            config["rope_local_base_freq"] = rope[LOCAL]["rope_theta"]
        rope = rope[GLOBAL]
    if not isinstance(rope, dict) or "rope_theta" not in rope:
        return
    config["rope_theta"] = rope["rope_theta"]
    scaling = {name: value for name, value in rope.items() if name not in ("rope_theta", "partial_rotary_factor")}
    if scaling.get("rope_type", "default") == "default":
        config["rope_scaling"] = None
    elif scaling["rope_type"] == "longrope":  # Phi 3 of version 4 accepts exactly these three
        config["rope_scaling"] = {
            "type": "longrope", "short_factor": scaling["short_factor"], "long_factor": scaling["long_factor"],
        }  # fmt: skip
        config.setdefault("original_max_position_embeddings", scaling.get("original_max_position_embeddings"))
    else:
        config["rope_scaling"] = scaling
    if "partial_rotary_factor" in rope:
        config["partial_rotary_factor"] = rope["partial_rotary_factor"]
    if config.get("model_type") == "gpt_neox":
        config["rotary_emb_base"] = rope["rope_theta"]
        config["rotary_pct"] = rope.get("partial_rotary_factor", 1.0)
