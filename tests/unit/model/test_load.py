"""Files of a model that do not fit its config. tests/ranks/test_files_of_a_model.py reads them with ZeRO-3."""

import json
from pathlib import Path

import pytest

from ftdist.base.errors import ConfigError
from ftdist.model.attention_plan import PLAIN
from ftdist.model.load import load_model, model_config
from tests.helpers.own_code import save_model_with_own_code
from tests.helpers.tiny import save_tiny_model, tiny_config

STAGE_0 = {"zero_optimization": {"stage": 0}}


def change_config(folder: Path, **fields: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def test_a_weight_of_another_shape_is_named(tmp_path: Path) -> None:
    change_config(save_tiny_model(tmp_path / "model"), num_key_value_heads=1)
    config = tiny_config(tmp_path)
    with pytest.raises(ConfigError, match="k_proj.weight is 32 × 64 in the files, and 16 × 64 by the config"):
        load_model(config, model_config(config), PLAIN, STAGE_0)


def test_weights_that_are_tied_only_in_the_config_are_refused(tmp_path: Path) -> None:
    change_config(save_tiny_model(tmp_path / "model"), tie_word_embeddings=True)
    config = tiny_config(tmp_path)
    with pytest.raises(ConfigError, match="ties lm_head.weight to model.embed_tokens.weight, but its files have both"):
        load_model(config, model_config(config), PLAIN, STAGE_0)


def test_code_that_is_not_trusted_is_named(tmp_path: Path) -> None:
    save_model_with_own_code(tmp_path / "model", "own")
    with pytest.raises(ConfigError, match="Python code in this folder or repository builds the model") as caught:
        model_config(tiny_config(tmp_path))
    assert "model.trust_remote_code=true" in caught.value.fix
