"""A run that starts from a saved adapter: its first step computes what PEFT computes with it."""

from dataclasses import fields
from pathlib import Path
from typing import Any, Dict, List

import pytest
import torch
from safetensors.torch import load_file, save_file

from ftdist.base.errors import ConfigError
from ftdist.base.json_files import read_json, write_json
from ftdist.checkpoint.export import _remove_padding
from ftdist.method.check import check_run
from ftdist.method.continued import check_continued, start_from_adapter
from ftdist.method.lora import Lora
from ftdist.model.adapter import check_folded
from ftdist.model.load import load_whole
from ftdist.model.opened import open_exported
from ftdist.run.adapters import INIT_FROM, NO_EFFECT, PLAIN, PREFIX, READ, adapter_settings
from ftdist.run.file_names import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from ftdist.verify.reference_method import apply_plainly, own_names, weights_of_another_adapter
from ftdist.verify.reference_model import merged_plainly
from tests.helpers.adapters import save_peft_adapter
from tests.helpers.tiny import save_tiny_model
from tests.models.alone import save_tiny
from tests.unit.method.test_lora import base_of, export, logits, lora_config, trained


def continuing(base: Path, adapter: Path) -> Any:
    return lora_config(base, init_from=str(adapter), **adapter_settings(INIT_FROM, adapter))


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["q_proj", "up_proj"]},
        {"target_modules": r".*layers\.1.*proj", "use_rslora": True, "modules_to_save": ["lm_head"]},
        {"target_modules": ["down_proj"], "use_dora": True},
        {"target_modules": ["q_proj", "lm_head"], "modules_to_save": ["norm"]},
    ],
    ids=["lora", "rslora", "dora", "head and all norms"],
)
def test_the_start_is_the_adapter_of_peft(settings: Dict[str, Any], tmp_path: Path) -> None:
    from peft import PeftModel

    base = save_tiny_model(tmp_path / "model")
    adapter = save_peft_adapter(base, tmp_path / "adapter", **settings)
    config = continuing(base, adapter)
    config.cache_dir = str(tmp_path / "cache")
    check_run(config)
    model = Lora().apply(base_of(config), config)
    before = logits(model.eval())
    start_from_adapter(model, config)
    expected = logits(PeftModel.from_pretrained(base_of(config), adapter).eval())
    assert logits(model).equal(expected) and not expected.equal(before)


def test_all_settings_of_peft_are_known() -> None:
    from peft import LoraConfig

    assert {setting.name for setting in fields(LoraConfig)} == {*PLAIN, *READ, *NO_EFFECT}


@pytest.mark.parametrize("saved", [["lm_head"], ["embed_tokens"], ["embed_tokens", "lm_head"]], ids=str)
def test_an_adapter_that_unties_the_embeddings_is_refused(saved: List[str], tmp_path: Path) -> None:
    """PEFT trains a copy of each module that is saved. In a model with tied embeddings the copies become different."""
    base = save_tiny_model(tmp_path / "model", tie_word_embeddings=True)
    adapter = save_peft_adapter(base, tmp_path / "adapter", target_modules=["q_proj"], modules_to_save=saved)
    config = continuing(base, adapter)
    model = base_of(config)
    for check in (lambda: check_continued(Lora().apply(model, config), config), lambda: check_folded(model, adapter)):
        with pytest.raises(ConfigError, match="the model has one tensor for model.embed_tokens") as error:
            check()
        assert saved[0] in error.value.found and "tie_word_embeddings=false" in error.value.fix


def test_an_adapter_of_a_tied_head_is_refused_as_such(tmp_path: Path) -> None:
    """The settings are the adapter's, so that no advice about method.target_modules would help."""
    base = save_tiny_model(tmp_path / "model", tie_word_embeddings=True)
    config = continuing(base, save_peft_adapter(base, tmp_path / "adapter", target_modules=["q_proj", "lm_head"]))
    config.cache_dir = str(tmp_path / "cache")
    with pytest.raises(ConfigError, match="has an adapter for lm_head, but the model has one tensor for") as caught:
        check_run(config)
    assert "leave out method.init_from" in caught.value.fix


def test_an_export_with_tied_embeddings_and_more_tokens_is_continued(tmp_path: Path) -> None:
    config = lora_config(save_tiny_model(tmp_path / "model", tie_word_embeddings=True), modules_to_save=["lm_head"])
    model = base_of(config)
    model.resize_token_embeddings(261)
    model = Lora().apply(model, config).eval()
    adapter = export(config, model, trained(model), tmp_path / "adapter")
    again = continuing(Path(str(config.model.path)), adapter)
    again.cache_dir = str(tmp_path / "cache")
    check_run(again)
    new = base_of(again)
    new.resize_token_embeddings(264)  # one more token, and padding
    new = Lora().apply(new, again).eval()
    start_from_adapter(new, again)
    assert logits(new)[..., :261].equal(logits(model))
    small = Lora().apply(base_of(again), again)
    with pytest.raises(ConfigError, match=r"has the shape \[261, 64\], and the model needs \[259, 64\]"):
        start_from_adapter(small, again)


@pytest.mark.parametrize("use_dora", [False, True])
def test_an_adapter_of_a_padded_head_is_exported_without_padding_and_continued_with_it(
    use_dora: bool, tmp_path: Path
) -> None:
    config = lora_config(save_tiny_model(tmp_path / "model"), target_modules=["q_proj", "lm_head"], use_dora=use_dora)
    model = base_of(config)
    model.resize_token_embeddings(320, mean_resizing=False)
    model = Lora().apply(model, config).eval()
    weights = _remove_padding(trained(model), model.config, 259, trust_remote_code=False)
    adapter = export(config, model, weights, tmp_path / "adapter")
    again = continuing(Path(str(config.model.path)), adapter)
    new = base_of(again)
    new.resize_token_embeddings(264, mean_resizing=False)
    new = Lora().apply(new, again).eval()
    start_from_adapter(new, again)
    expected = logits(model)[..., :259]
    assert logits(new)[..., :259].equal(expected) and logits(open_exported(adapter).eval()).equal(expected)


@pytest.mark.parametrize(
    ("model", "changed", "found"),
    [
        ({"intermediate_size": 96}, {}, "mlp.up_proj.lora_A"),
        ({"num_hidden_layers": 3}, {}, "layers.2.mlp.up_proj.lora_A.weight is missing, and the model needs"),
        ({"num_hidden_layers": 1}, {}, "and the model has no such tensor"),
        ({}, {"r": 8}, "has the shape [4, 64], and the model needs [8, 64]"),
        ({}, {"use_dora": True}, "lora_magnitude_vector is missing"),
    ],
    ids=["sizes", "deeper", "shallower", "rank", "dora"],
)  # fmt: skip
def test_an_adapter_that_does_not_fit_is_refused_before_anything_starts(
    model: Dict[str, Any], changed: Dict[str, Any], found: str, tmp_path: Path
) -> None:
    adapter = save_peft_adapter(save_tiny_model(tmp_path / "model"), tmp_path / "adapter", target_modules=["up_proj"])
    config = continuing(save_tiny_model(tmp_path / "other", **model), adapter)
    for name, value in changed.items():
        setattr(config.method, name, value)
    with pytest.raises(ConfigError) as caught:
        check_run(config)
    if model != {"intermediate_size": 96}:
        assert found in caught.value.found
    assert "does not fit the model" in caught.value.found and "leave out method.init_from" in caught.value.fix


IMAGES_BEFORE = {"gemma3": "language_model.model.", "llava": "language_model.model.", "qwen2_vl": "model."}
"""Where transformers 4 had the layers of the language part of models with images. They are in ``model.language_model.``
now."""


def with_old_names(adapter: Path, kind: str) -> Path:
    """Write an adapter with the names of transformers 4, in place."""

    def old(name: str) -> str:
        name = name.replace(".model.model.language_model.", f".model.{IMAGES_BEFORE[kind]}")
        return name.replace(".lm_head", ".language_model.lm_head" if kind == "llava" else ".lm_head")

    tensors = {old(name): tensor for name, tensor in load_file(adapter / ADAPTER_WEIGHTS).items()}
    save_file(tensors, adapter / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    settings = read_json(adapter / ADAPTER_CONFIG)
    if isinstance(settings["target_modules"], list):
        settings["target_modules"] = [old(PREFIX + name).removeprefix(PREFIX) for name in settings["target_modules"]]
    write_json(adapter / ADAPTER_CONFIG, settings)
    return adapter


@pytest.mark.parametrize("kind", IMAGES_BEFORE)
def test_an_adapter_with_the_names_of_transformers_4_is_the_same_adapter(kind: str, tmp_path: Path) -> None:
    """PEFT alone finds no tensor of Qwen2-VL's, and stops at modules that were saved."""
    save_tiny(kind, tmp_path / "model")
    layers = "model.language_model.layers"
    for number, settings in enumerate((
        {"target_modules": rf".*language_model.*layers\.1\..*(q|up)_proj|{layers}.0.mlp.up_proj|model.layers.*_proj"},
        {"target_modules": [f"{layers}.0.self_attn.v_proj", f"{layers}.1.mlp.up_proj"], "use_dora": True,
         **({"modules_to_save": ["lm_head"]} if kind == "llava" else {})},
    )):  # fmt: skip
        adapter = save_peft_adapter(tmp_path / "model", tmp_path / str(number), **settings)
        opened = logits(open_exported(adapter).eval())
        with_old_names(adapter, kind)
        config = continuing(tmp_path / "model", adapter)
        config.cache_dir = str(tmp_path / "cache")
        check_run(config)
        base = load_whole(config)
        plain = logits(base.eval())
        continued = Lora().apply(base, config).eval()
        start_from_adapter(continued, config)
        assert logits(continued).equal(opened) and not opened.equal(plain)
        reference = apply_plainly(load_whole(config), config.method)
        weights = dict(continued.named_parameters())
        assert {name for name, one in own_names(reference).items() if one.requires_grad} == trained(continued).keys()
        start_from_adapter(continued, config)
        assert weights_of_another_adapter(reference, str(adapter), weights) == []
        assert logits(merged_plainly(load_whole(config), str(adapter))).allclose(opened, rtol=1e-4, atol=1e-5)
        config.model.adapter, config.method.init_from = str(adapter), None
        folded = load_whole(config).eval()
        assert torch.allclose(logits(folded), opened, rtol=1e-4, atol=1e-5)
        assert logits(open_exported(adapter).eval()).equal(opened)


def test_adapters_of_other_parts_and_of_experts_are_refused_with_the_reason(tmp_path: Path) -> None:
    save_tiny("gemma3", tmp_path / "images")
    adapter = save_peft_adapter(tmp_path / "images", tmp_path / "1", target_modules=["q_proj"])
    config = continuing(tmp_path / "images", adapter)
    config.cache_dir = str(tmp_path / "cache")
    with pytest.raises(
        ConfigError, match=r"adapts model\.vision_tower\..*q_proj, a part for images or sound"
    ) as caught:
        check_run(config)
    assert caught.value.fix.startswith(f"model.adapter={adapter} ")
    config.method.init_from, config.model.adapter = None, str(adapter)
    check_run(config)
    assert torch.allclose(
        logits(load_whole(config).eval()), logits(open_exported(adapter).eval()), rtol=1e-4, atol=1e-5
    )
    save_tiny("mixtral", tmp_path / "experts")
    adapter = save_peft_adapter(tmp_path / "experts", tmp_path / "2", target_modules=["q_proj"])
    tensors = load_file(adapter / ADAPTER_WEIGHTS)
    tensors[f"{PREFIX}model.layers.0.block_sparse_moe.experts.0.w1.lora_A.weight"] = torch.zeros(4, 64)
    save_file(tensors, adapter / ADAPTER_WEIGHTS)
    config = continuing(tmp_path / "experts", adapter)
    for check in (
        lambda: check_continued(Lora().apply(base_of(config), config), config),
        lambda: check_folded(base_of(config), adapter),
    ):
        with pytest.raises(
            ConfigError,
            match="which in transformers 5 is a part of the tensor model.layers.0.mlp.experts.gate_up_proj",
        ):
            check()
