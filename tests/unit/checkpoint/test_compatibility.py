"""Exports have the fields of transformers 4 too. tests/packaging/test_transformers_4.py opens them there."""

import json
from pathlib import Path
from typing import Any, Dict

import pytest

from ftdist.checkpoint.compatibility import write_old_fields
from ftdist.data.tokenizer import bytes_tokenizer

LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "original_max_position_embeddings": 4096}
LAYERS = {"full_attention": {"rope_type": "default", "rope_theta": 7.0},
          "sliding_attention": {"rope_type": "default", "rope_theta": 3.0}}  # fmt: skip
CONFIGS = {
    "llama": (LLAMA3, {"rope_theta": 5e5, "original_max_position_embeddings": 4096,
                       "rope_scaling": {k: v for k, v in LLAMA3.items() if k != "rope_theta"}}),
    "gemma3_text": (LAYERS, {"rope_theta": 7.0, "rope_local_base_freq": 3.0, "rope_scaling": None}),
    "modernbert-decoder": (LAYERS, {"global_rope_theta": 7.0, "local_rope_theta": 3.0}),
    "gpt_neox_japanese": ({"rope_theta": 9.0, "partial_rotary_factor": 0.5},
                          {"rotary_emb_base": 9.0, "rotary_pct": 0.5, "partial_rotary_factor": 0.5}),
}  # fmt: skip


def rewritten(folder: Path, config: Dict[str, Any]) -> Dict[str, Any]:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    write_old_fields(folder)
    return dict(json.loads((folder / "config.json").read_text()))


@pytest.mark.parametrize("kind", CONFIGS)
def test_rotary_embeddings_are_also_in_their_old_place(kind: str, tmp_path: Path) -> None:
    rope, old = CONFIGS[kind]
    found = rewritten(tmp_path, {"model_type": kind, "rope_parameters": rope})
    assert {name: found.get(name) for name in old} == old and found["rope_parameters"] == rope


def test_other_fields_have_their_old_names(tmp_path: Path) -> None:
    layers = ["linear_attention", "full_attention"]
    found = rewritten(tmp_path, {"model_type": "granitemoehybrid", "layer_types": layers, "dtype": "bfloat16",
                                 "num_local_experts": 4, "limits": [0.0, {"__float__": "Infinity"}]})  # fmt: skip
    assert found["layer_types"] == ["mamba", "attention"] and found["torch_dtype"] == "bfloat16"
    assert found["num_experts"] == 4 and found["limits"] == [0.0, float("inf")]
    assert rewritten(tmp_path / "x", {"model_type": "llama", "layer_types": layers})["layer_types"] == layers


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"tokenizer_class": "LlamaTokenizer", "is_local": True}, "PreTrainedTokenizerFast"),
        ({"tokenizer_class": "Qwen3_5Tokenizer"}, "PreTrainedTokenizerFast"),  # version 4 has no such class
        ({"tokenizer_class": "GPT2Tokenizer"}, "GPT2Tokenizer"),
        ({"tokenizer_class": "MyTokenizer", "auto_map": {"AutoTokenizer": ["mine.MyTokenizer", None]}}, "MyTokenizer"),
    ],
)
def test_the_tokenizer_uses_its_file_as_it_is_in_both_versions(
    fields: Dict[str, Any], kind: str, tmp_path: Path
) -> None:
    bytes_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**fields, "extra_special_tokens": ["<|im_start|>"]}))
    rewritten(tmp_path, {"model_type": "llama"})
    found = json.loads((tmp_path / "tokenizer_config.json").read_text())
    added = {number: (token["content"], token["special"]) for number, token in found["added_tokens_decoder"].items()}
    assert added == {"256": ("<|im_start|>", True), "257": ("<|im_end|>", True), "258": ("<|pad|>", True)}
    assert found["tokenizer_class"] == kind and "is_local" not in found
    assert found["additional_special_tokens"] == ["<|im_start|>"]
    assert found["model_input_names"] == ["input_ids", "attention_mask"]  # no token types for generate() in version 4


COMPLETE = {
    "llama": {"rope_parameters": {**LLAMA3, "low_freq_factor": 1.0, "high_freq_factor": 4.0}},
    "phi3": {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 48,
                                 "long_factor": [2.0] * 48, "original_max_position_embeddings": 4096}},
    "qwen3": {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0,
                                  "original_max_position_embeddings": 32768}},
    "gemma3_text": {"rope_parameters": LAYERS},
    "gpt_neox": {"rope_parameters": {"rope_type": "default", "rope_theta": 9.0, "partial_rotary_factor": 0.5}},
}  # fmt: skip


@pytest.mark.parametrize("kind", [*COMPLETE, "laguna"])
def test_version_5_reads_the_same_rotary_embeddings(kind: str, tmp_path: Path) -> None:
    """The old fields are left out where they would change them (Laguna)."""
    from transformers import AutoConfig

    written = AutoConfig.for_model(kind, **COMPLETE.get(kind, {}))
    found = rewritten(tmp_path, written.to_dict())
    read = AutoConfig.from_pretrained(tmp_path).rope_parameters
    assert {name: read[name] for name in written.rope_parameters} == written.rope_parameters
    assert ("rope_theta" in found) is (kind != "laguna")
