"""Exports for programs that read the files of transformers 4: moved settings are also written to their old fields.

transformers 5 keeps all settings of rotary embeddings in ``rope_parameters``. transformers 4, and programs that read
``config.json`` themselves or with version 4 (vLLM before 0.24, the converter of llama.cpp), look for ``rope_theta`` and
``rope_scaling``. Without these fields they use the default of the architecture and print no warning.

Sources for what these programs read: ``transformers_utils/config.py`` and ``model_arch_config_convertor.py`` of vLLM,
``conversion/`` and ``gguf-py/gguf/vocab.py`` of llama.cpp.
"""

from pathlib import Path
from typing import Any, Dict, List, Optional

from ftdist.base.json_files import read_json, write_json

TESTED = "5.23"
"""Version of transformers with which every export was tested."""
READ_BY_4 = (
    "arcee", "aria_text", "bart", "bert", "bert-generation", "big_bird", "biogpt", "bitnet", "blenderbot",
    "blenderbot-small", "bloom", "camembert", "codegen", "cohere", "cohere2", "ctrl", "data2vec-text", "deepseek_v2",
    "deepseek_v3", "diffllama", "doge", "dots1", "electra", "ernie", "ernie4_5", "ernie4_5_moe", "exaone4", "falcon",
    "falcon_h1", "falcon_mamba", "flex_olmo", "gemma", "gemma2", "gemma3", "gemma3_text", "gemma3n_text", "git", "glm",
    "glm4", "glm4_moe", "got_ocr2", "gpt-sw3", "gpt2", "gpt_bigcode", "gpt_neox", "gpt_neox_japanese", "gpt_oss",
    "gptj", "granite", "granitemoe", "granitemoeshared", "helium", "hunyuan_v1_dense", "hunyuan_v1_moe", "jetmoe",
    "lfm2", "llama", "llama4", "llama4_text", "longcat_flash", "mamba", "marian", "mbart", "megatron-bert", "minimax",
    "ministral", "mistral", "mixtral", "mpt", "mvp", "nemotron", "olmo", "olmo2", "olmo3", "olmoe", "openai-gpt", "opt",
    "pegasus", "persimmon", "phi", "phi3", "phi4_multimodal", "phimoe", "plbart", "prophetnet", "qwen2", "qwen2_moe",
    "qwen3", "qwen3_moe", "qwen3_next", "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "rwkv",
    "seed_oss", "smollm3", "stablelm", "starcoder2", "trocr", "vaultgemma", "whisper", "xglm", "xlm", "xlm-roberta",
    "xlm-roberta-xl", "xlnet", "xmod",
)  # fmt: skip
"""Types of models whose exports also have the same logits in transformers 4.57, up to 2e-4. Other types do not
exist in 4.57, fail there, or give other logits (Apertus, Mamba 2, ModernBERT). Measured with tiny models in fp32, see
``tests/packaging/test_transformers_4.py``."""
LOCAL, GLOBAL = "sliding_attention", "full_attention"
OLD_LAYERS = {"linear_attention": "mamba", GLOBAL: "attention"}
"""Names of the kinds of layers in the old Granite hybrids. Version 5 reads these too."""
GENERIC = "PreTrainedTokenizerFast"
"""The tokenizer class that uses ``tokenizer.json`` unchanged in both versions. The tokenizer classes of models do
not: version 5 rebuilds parts of the tokenizer from other settings, and version 4 has other defaults for these settings
or lacks the class."""
NEEDED_NAMES = ("GPT2Tokenizer",)
"""Classes that are the same in both versions. llama.cpp uses them to recognize a Phi with a byte-level vocabulary."""


def tested_versions(model_type: str) -> str:
    """Return the versions of transformers with which exports of a type of model were tested."""
    return f"4.57 and {TESTED}" if model_type in READ_BY_4 else TESTED


def write_old_fields(folder: Path) -> None:
    """Add the fields of transformers 4 to the config and the tokenizer of an export.

    The config stays as it is if version 5 reads other rotary embeddings with the old fields (Laguna).
    """
    file = folder / "config.json"
    if file.is_file():  # an adapter has none
        written, rope = file.read_bytes(), _rope_of(folder)
        config = _plain_numbers(read_json(file))
        for part in (config, config.get("text_config")):
            if isinstance(part, dict):
                _add_old_fields(part)
        write_json(file, config)
        if rope is not None and _rope_of(folder) != rope:
            file.write_bytes(written)
    if (folder / "tokenizer_config.json").is_file() and (folder / "tokenizer.json").is_file():
        tokenizer = _old_tokenizer(read_json(folder / "tokenizer_config.json"), read_json(folder / "tokenizer.json"))
        write_json(folder / "tokenizer_config.json", tokenizer)


def _rope_of(folder: Path) -> Optional[List[Any]]:
    """Return the parameters of rotary embeddings that transformers reads, or None if it cannot read the config."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception:  # a config of the model's own code, or one that is not complete
        return None
    found = [getattr(part, "rope_parameters", None) for part in (config, config.get_text_config())]
    return [{**rope, "type": None} if isinstance(rope, dict) else rope for rope in found]  # "type" is an old name


def _old_tokenizer(config: Dict[str, Any], backend: Dict[str, Any]) -> Dict[str, Any]:
    """Return a ``tokenizer_config.json`` that both versions and llama.cpp read, without fields about this machine.

    Args:
        config: The file of version 5.
        backend: The ``tokenizer.json`` of the same tokenizer.
    """
    config = {name: value for name, value in config.items() if name not in ("is_local", "local_files_only")}
    if "auto_map" not in config and config.get("tokenizer_class") not in NEEDED_NAMES:  # not a class of its own code
        config["tokenizer_class"] = GENERIC
    # GENERIC in version 4 also returns token types, which most models refuse as an argument of generate()
    config.setdefault("model_input_names", ["input_ids", "attention_mask"])
    if isinstance(config.get("extra_special_tokens"), list):  # version 4 reads a dict here, and fails
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    # if there is a tokenizer.model, llama.cpp reads the tokens that were added to it from this field
    config["added_tokens_decoder"] = {
        str(token["id"]): {name: value for name, value in token.items() if name != "id"}
        for token in backend.get("added_tokens", [])
    }
    return config


def _plain_numbers(value: Any) -> Any:
    """Return a config in which infinities are numbers. Version 5 writes ``{"__float__": "Infinity"}``."""
    if isinstance(value, dict):
        if set(value) == {"__float__"}:
            return float(value["__float__"])
        return {name: _plain_numbers(item) for name, item in value.items()}
    return [_plain_numbers(item) for item in value] if isinstance(value, list) else value


def _add_old_fields(config: Dict[str, Any]) -> None:
    kind = str(config.get("model_type"))
    if "dtype" in config:
        config["torch_dtype"] = config["dtype"]
    if "num_local_experts" in config and "moe" in kind:
        config["num_experts"] = config["num_local_experts"]  # its name in Qwen's and OLMo's mixtures of experts
    if kind == "granitemoehybrid" and "layer_types" in config:
        config["layer_types"] = [OLD_LAYERS.get(layer, layer) for layer in config["layer_types"]]
    rope = config.get("rope_parameters")
    if not isinstance(rope, dict):
        return
    if GLOBAL in rope:  # one set of parameters for each kind of layer, as in Gemma 3
        if LOCAL in rope:
            config["rope_local_base_freq"] = rope[LOCAL]["rope_theta"]
            if kind.startswith("modernbert"):
                config["local_rope_theta"] = rope[LOCAL]["rope_theta"]
        rope = rope[GLOBAL]
        if kind.startswith("modernbert") and isinstance(rope, dict):
            config["global_rope_theta"] = rope["rope_theta"]
    if isinstance(rope, dict) and "rope_theta" in rope:
        _add_old_rope(config, kind, rope)


def _add_old_rope(config: Dict[str, Any], kind: str, rope: Dict[str, Any]) -> None:
    """Add the old fields of rotary embeddings to a config.

    Args:
        kind: The ``model_type`` of the config.
        rope: The parameters of its rotary embeddings. If layers have different ones, those of full attention.
    """
    config["rope_theta"] = rope["rope_theta"]
    scaling = {name: value for name, value in rope.items() if name not in ("rope_theta", "partial_rotary_factor")}
    original = scaling.get("original_max_position_embeddings")
    if scaling.get("rope_type", "default") == "default":
        config["rope_scaling"] = None
    elif scaling["rope_type"] == "longrope":  # Phi 3 of version 4 accepts exactly these three
        config["rope_scaling"] = {
            "type": "longrope", "short_factor": scaling["short_factor"], "long_factor": scaling["long_factor"],
        }  # fmt: skip
        config.setdefault("original_max_position_embeddings", original)
    else:
        config["rope_scaling"] = scaling
        if scaling["rope_type"] == "llama3":  # llama.cpp looks for it here, and assumes 8192 without it
            config.setdefault("original_max_position_embeddings", original)
    if "partial_rotary_factor" in rope:
        config["partial_rotary_factor"] = rope["partial_rotary_factor"]
    if kind.startswith("gpt_neox"):
        config["rotary_emb_base"] = rope["rope_theta"]
        config["rotary_pct"] = rope.get("partial_rotary_factor", 1.0)
