"""Values in a model's config with which no model can be built or trained: the message names the field."""

import json
from pathlib import Path
from typing import Any, Dict

import pytest
from transformers import CONFIG_MAPPING

from ftdist.base.errors import ConfigError
from ftdist.config.schema import RunConfig
from ftdist.model.check import check_model
from ftdist.model.config_values import odd_values
from tests.helpers.tiny import LLAMA

LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}


def refused(**fields: Any) -> ConfigError:
    config = RunConfig()
    config.model.config = {**LLAMA, **fields}
    with pytest.raises(ConfigError) as caught:
        check_model(config)
    return caught.value


@pytest.mark.parametrize(
    ("fields", "found", "expected"),
    [
        ({"vocab_size": "259"}, 'model.config.vocab_size="259"', "whole number"),
        ({"num_hidden_layers": -1}, "model.config.num_hidden_layers=-1", "whole number"),
        ({"num_key_value_heads": 0}, "model.config.num_key_value_heads=0", "whole number"),
        ({"rms_norm_eps": -1e-6}, "model.config.rms_norm_eps=-1e-06", "not negative"),
        ({"rms_norm_eps": float("nan")}, "model.config.rms_norm_eps=nan", "a number"),
        ({"attention_dropout": 1.5}, "model.config.attention_dropout=1.5", "from 0 to 1"),
        ({"rope_parameters": {**LINEAR, "factor": 0}}, "model.config.rope_parameters.factor=0", "greater than 0"),
        ({"rope_theta": 0}, "model.config.rope_theta=0", "greater than 0"),
        ({"model_type": "mistral", "sliding_window": 0}, "model.config.sliding_window=0", "greater than 0, or null"),
        ({"vocab_size": None}, "Field 'vocab_size' expected int, got NoneType", "supports"),
        ({"pad_token_id": "<pad>"}, "'pad_token_id' expected int or NoneType, got '<pad>'", "supports"),
        ({"dtype": "float8_e4m3fn"}, 'model.config.dtype="float8_e4m3fn"', "one of float64, float32"),
        ({"rope_parameters": {**LINEAR, "factor": None}}, "(rope_parameters.factor=null may be the cause)", "a number"),
        ({"rope_parameters": {**LINEAR, "rope_type": "odd"}}, '(rope_parameters.rope_type="odd" may', "knows"),
        ({"hidden_act": "nonsense"}, '(hidden_act="nonsense" may be the cause)', "transformers knows"),
        ({"text_config": "llama"}, 'model.config.text_config="llama"', "a llama model has no parts"),
        ({"text_config": {"hidden_size": 16}}, "model.config.text_config=", "a llama model has no parts"),
        ({"pad_token_id": 5000}, "(pad_token_id=5000 may be the cause)", "below vocab_size="),
        ({"model_type": "mixtral", "num_local_experts": 2, "num_experts_per_tok": 4},
         "model.config.num_experts_per_tok=4", "at most num_local_experts=2"),
        ({"dtype": {"": "float32"}}, "model.config.dtype={'': 'float32'}", "one of float64, float32"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "Missing required keys", "supports"),
        ({"return_dict": False}, "(return_dict=false may be the cause)", "true"),
        ({"output_attentions": True}, "(output_attentions=true may be the cause)", "exported"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)  # fmt: skip
def test_the_field_its_value_and_what_is_expected_are_named(fields: Dict[str, Any], found: str, expected: str) -> None:
    error = refused(**fields)
    assert found in error.found and expected in error.expected
    assert error.fix.startswith("correct model.config")


def test_the_own_value_of_a_type_is_not_refused() -> None:
    """The default of a type can be a value that other models cannot have. A key of a part can be a number."""
    glm = CONFIG_MAPPING["glm5_next_text"]().to_dict()
    assert glm["head_dim"] == 0 and not any(odd.certain for odd in odd_values({**glm, "id2label": {0: "no"}}))
    assert any(odd.certain for odd in odd_values({**glm, "hidden_size": 0}))


def test_the_file_of_a_folder_is_named(tmp_path: Path) -> None:
    config = RunConfig()
    config.model.path = str(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA, "num_attention_heads": 0}))
    with pytest.raises(ConfigError, match="config.json: num_attention_heads=0") as caught:
        check_model(config)
    assert caught.value.fix == "correct num_attention_heads in a local copy of the model"
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA, "tie_word_embeddings": "yes"}))
    with pytest.raises(ConfigError, match="config.json: .*'tie_word_embeddings' expected bool, got str"):
        check_model(config)
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA, "rope_parameters": {"rope_type": "yarn"}}))
    with pytest.raises(ConfigError, match="config.json: KeyError: .Missing required keys") as caught:
        check_model(config)
    assert caught.value.fix == "correct config.json in a local copy of the model"


@pytest.mark.parametrize(("given", "fix"), [("llamma", '"llama"'), (None, "another model"), (3, "another model")])
def test_a_type_that_transformers_does_not_know_is_named(given: Any, fix: str, tmp_path: Path) -> None:
    config = RunConfig()
    config.model.path = str(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA, "model_type": given}))
    with pytest.raises(ConfigError, match="config.json: model_type=.* is not a model type that transformers") as caught:
        check_model(config)
    assert fix in caught.value.fix


def test_values_that_some_models_have_are_not_odd() -> None:
    fields = {**LLAMA, "max_position_embeddings": -1, "pad_token_id": -1, "head_dim": None, "num_key_value_heads": None,
              "attention_dropout": 0.0, "rope_parameters": LINEAR, "intermediate_size": [64, 64]}  # fmt: skip
    assert not [odd for odd in odd_values(fields) if odd.certain]
    assert not list(odd_values({**LLAMA, "text_config": {}, "auto_map": {}})), "its own code may read it"
    assert not list(odd_values(LLAMA))
