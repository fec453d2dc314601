"""Files of a model that do not fit its config. tests/ranks/test_files_of_a_model.py reads them with ZeRO-3."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ftdist.base.errors import ConfigError
from ftdist.model.attention_plan import BY_DOCUMENT, PLAIN
from ftdist.model.check import check_model
from ftdist.model.isolation import prove_isolation
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


def test_quantized_weights_are_refused_before_the_launch(tmp_path: Path) -> None:
    how = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    change_config(save_tiny_model(tmp_path / "model"), quantization_config=how)
    with pytest.raises(ConfigError, match=r"the weights of .*/model are quantized \(mxfp4\)"):
        check_model(tiny_config(tmp_path))


def test_a_weights_file_that_is_missing_is_named(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model")
    names = list(load_file(folder / "model.safetensors"))
    (folder / "model.safetensors").rename(folder / "one.safetensors")
    files = dict.fromkeys(names[1:], "one.safetensors") | {names[0]: "two.safetensors"}
    index = {"metadata": {"total_size": 1}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = tiny_config(tmp_path)
    with pytest.raises(ConfigError, match="two.safetensors does not exist, but an index of weights names it"):
        load_model(config, model_config(config), PLAIN, STAGE_0)


def test_weights_that_are_not_finite_are_not_called_a_model_that_looks_ahead(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = tiny_config(tmp_path)
    model = load_model(config, model_config(config), BY_DOCUMENT, STAGE_0)
    with pytest.raises(ConfigError, match="the logits of the llama model are not finite"):
        prove_isolation(model, 259, torch.device("cpu"), torch.float32, "documents")
