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
from ftdist.run.model_facts import read_facts, write_facts
from tests.helpers.own_code import save_model_with_own_code
from tests.helpers.tiny import save_tiny_model, tiny_config

STAGE_0 = {"zero_optimization": {"stage": 0}}


def change_config(folder: Path, **fields: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def test_a_weight_of_another_shape_is_named(tmp_path: Path) -> None:
    change_config(save_tiny_model(tmp_path / "model"), num_key_value_heads=1)
    config = tiny_config(tmp_path)
    for check in (lambda: check_model(config), lambda: load_model(config, model_config(config), PLAIN, STAGE_0)):
        with pytest.raises(ConfigError, match="k_proj.weight is 32 × 64 in the files, and 16 × 64 by the config"):
            check()


def test_weights_with_names_of_another_model_are_named(tmp_path: Path) -> None:
    file = save_tiny_model(tmp_path / "model") / "model.safetensors"
    save_file({f"net.{name}": weight for name, weight in load_file(file).items()}, file, {"format": "pt"})
    config = tiny_config(tmp_path)
    for check in (lambda: check_model(config), lambda: load_model(config, model_config(config), PLAIN, STAGE_0)):
        with pytest.raises(ConfigError, match="lacks 21 weights.*, and holds 21 weights that the model does") as caught:
            check()
        assert "(net.lm_head.weight …)" in caught.value.found and "rename the weights" in caught.value.fix
    change_config(save_tiny_model(tmp_path / "model"), attention_bias=True)
    with pytest.raises(ConfigError, match="lacks 8 weights") as caught:
        load_model(config, model_config(config), PLAIN, STAGE_0)
    assert caught.value.fix == "use a complete model folder"


def test_a_run_is_refused_before_its_ranks_would_miss_a_weight(tmp_path: Path) -> None:
    """Also of weights that transformers merges while it reads them: those of experts."""
    file = save_tiny_model(tmp_path / "model", model_type="mixtral", num_local_experts=2) / "model.safetensors"
    weights, config = load_file(file), tiny_config(tmp_path)
    write_facts(config, check_model(config))
    assert len([name for name in weights if ".experts.1.w2." in name]) == 2, "files have each expert's weights apart"
    expert, gate = "model.layers.1.block_sparse_moe.experts.1.w2.weight", "model.layers.0.block_sparse_moe.gate.weight"
    for name, found in ((expert, "experts.down_proj is 1 × 64 × 128 in the files"), (gate, "lacks 1 weight ")):
        save_file({key: weight for key, weight in weights.items() if key != name}, file, {"format": "pt"})
        assert name in weights and read_facts(config) is None, "the model would not be checked again"
        with pytest.raises(ConfigError, match=found) as in_ranks:
            load_model(config, model_config(config), PLAIN, STAGE_0)
        with pytest.raises(ConfigError) as before:
            check_model(config)
        assert str(before.value) == str(in_ranks.value)


def test_files_may_have_both_of_two_tied_weights(tmp_path: Path) -> None:
    """The check before the run has no numbers, so it cannot tell whether they are equal."""
    file = save_tiny_model(tmp_path / "model", tie_word_embeddings=True) / "model.safetensors"
    weights = load_file(file)
    save_file(weights | {"lm_head.weight": weights["model.embed_tokens.weight"].clone()}, file, {"format": "pt"})
    config = tiny_config(tmp_path)
    assert check_model(config).model_type == "llama"
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


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_named(value: float, tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.q_proj.weight"
    weights = load_file(save_tiny_model(tmp_path / "model") / "model.safetensors")
    weights[name][0, 0] = value
    config = tiny_config(tmp_path)
    save_file(weights, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=f"{name} holds NaN or infinity in the files of"):
        load_model(config, model_config(config), BY_DOCUMENT, STAGE_0)


def test_logits_that_are_not_finite_are_not_called_a_model_that_looks_ahead(tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "model")
    config = tiny_config(tmp_path)
    model = load_model(config, model_config(config), BY_DOCUMENT, STAGE_0)
    model.model.norm.weight.data[0] = float("nan")
    with pytest.raises(ConfigError, match="the logits of the llama model are not finite"):
        prove_isolation(model, 259, torch.device("cpu"), torch.float32, "documents")


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.float8_e4m3fn, torch.complex64])
def test_a_weight_that_is_not_a_floating_point_number_is_named(dtype: torch.dtype, tmp_path: Path) -> None:
    file, config = save_tiny_model(tmp_path / "model") / "model.safetensors", tiny_config(tmp_path)
    name = "model.layers.0.self_attn.q_proj.weight"
    weights = {name: weight.double() for name, weight in load_file(file).items()}
    save_file({**weights, "model.table": torch.ones(2, dtype=dtype)}, file)  # no weight of the model
    write_facts(config, check_model(config))
    save_file({**weights, name: weights[name].to(dtype)}, file)
    assert read_facts(config) is None, "the facts are those of other files"
    with pytest.raises(ConfigError, match=f"{name} has the type .* in the files of"):
        check_model(config)
    without_prefix = {key.removeprefix("model."): weight for key, weight in weights.items()}
    save_file({**without_prefix, name.removeprefix("model."): weights[name].to(dtype)}, file)
    with pytest.raises(ConfigError, match="layers.0.self_attn.q_proj.weight has the type"):
        check_model(config)


def test_an_empty_quantization_config_is_refused(tmp_path: Path) -> None:
    change_config(save_tiny_model(tmp_path / "model"), quantization_config={})
    with pytest.raises(ConfigError, match=r"are quantized \(quantization_config\)"):
        check_model(tiny_config(tmp_path))
