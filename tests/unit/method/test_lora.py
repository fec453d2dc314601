"""Adapters in one process: what they start with, PEFT's format, folding them into the base model."""

import shutil
import warnings
from pathlib import Path
from typing import Any, Dict

import pytest
import torch
from transformers import AutoModelForCausalLM

from ftdist.base.errors import CheckpointError, ConfigError
from ftdist.base.json_files import read_json, write_json
from ftdist.config.frozen import dump_config
from ftdist.config.method import MethodKind
from ftdist.config.schema import Precision, RunConfig
from ftdist.data.tokenizer import bytes_tokenizer
from ftdist.method.lora import Lora, export_merged
from ftdist.model.forward import evaluation_mode, keeps_logits
from ftdist.model.load import DTYPES, identity_of_base
from ftdist.model.opened import open_exported
from ftdist.run.file_names import EXPORT_MARK
from ftdist.serve.chat import load
from tests.helpers.tiny import save_tiny_model, tiny_config
from tests.models.alone import save_tiny

IDS = torch.arange(3, 40)[None]


def lora_config(path: Path, precision: Precision = Precision.fp32, **method: Any) -> RunConfig:
    config = RunConfig()
    config.model.path, config.model.tokenizer, config.train.precision = str(path), "bytes", precision
    config.method.kind, config.method.r = MethodKind.lora, 4
    for name, value in method.items():
        setattr(config.method, name, value)
    return config


def base_of(config: RunConfig) -> Any:
    return AutoModelForCausalLM.from_pretrained(config.model.path, dtype=DTYPES[config.train.precision]).eval()


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(input_ids=IDS, use_cache=False).logits


@torch.no_grad()
def trained(model: Any) -> Dict[str, torch.Tensor]:
    """Move every trained parameter, as a run would, and return the values."""
    draw = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(torch.empty(parameter.shape).normal_(0, 0.05, generator=draw).to(parameter.dtype))
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def export(config: RunConfig, model: Any, weights: Dict[str, torch.Tensor], out: Path) -> Path:
    out.mkdir()
    model.config.save_pretrained(out)
    model.generation_config.save_pretrained(out)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)  # a user would see it
        Lora().export(weights, model.config, out, config)
    return out


FP32, BF16 = Precision.fp32, Precision.bf16


@pytest.mark.parametrize(
    ("method", "precision"),
    [({}, FP32), ({}, BF16), ({"use_rslora": True}, FP32), ({"use_dora": True}, BF16), ({"lora_dropout": 0.5}, FP32)],
    ids=str,
)
def test_before_the_first_step_the_logits_are_the_bases_bit_for_bit(
    method: Dict[str, Any], precision: Precision, tmp_path: Path
) -> None:
    config = lora_config(save_tiny_model(tmp_path / "model"), precision, **method)
    before, model = logits(base_of(config)), Lora().apply(base_of(config), config)
    assert logits(model.eval()).equal(before)
    assert keeps_logits(model), "the model's signature is hidden: all logits would be computed"
    again = Lora().apply(base_of(config), config)
    for (name, one), other in zip(model.named_parameters(), again.parameters(), strict=True):
        assert one.equal(other) and one.dtype is DTYPES[precision]
        if "lora_A" in name:
            bound = one.shape[1] ** -0.5
            assert 0.9 * bound < one.abs().max() <= 1.01 * bound
    assert len({float(p.detach().flatten()[0]) for name, p in model.named_parameters() if "lora_A" in name}) == 14
    trained(model)
    expected = logits(model)
    with evaluation_mode(model.train()):
        assert logits(model).equal(expected), "there is dropout in evaluation"
    assert model.training


@pytest.mark.parametrize(
    ("method", "precision"),
    [({"use_rslora": True}, FP32), ({"modules_to_save": ["lm_head"]}, BF16), ({"use_dora": True}, FP32)], ids=str,
)  # fmt: skip
def test_an_adapter_is_one_of_peft_and_merges_into_the_base(
    method: Dict[str, Any], precision: Precision, tmp_path: Path
) -> None:
    from peft import PeftModel

    config = lora_config(save_tiny_model(tmp_path / "model"), precision, **method)
    model = Lora().apply(base_of(config), config).eval()
    weights = trained(model)
    expected = logits(model)
    out = export(config, model, weights, tmp_path / "adapter")
    assert not (out / "config.json").exists()
    opened = PeftModel.from_pretrained(base_of(config), out, autocast_adapter_dtype=False).eval()
    assert logits(opened).equal(expected)
    assert logits(open_exported(out).eval()).equal(expected)

    merged = tmp_path / "merged"
    merged.mkdir()
    model.generation_config.save_pretrained(merged)
    line = export_merged(weights, base_of(config).config, merged, config)
    assert "logits differ from those with the adapter by at most" in line
    whole = AutoModelForCausalLM.from_pretrained(merged, dtype="auto")
    if not method.get("use_dora"):
        scale = config.method.lora_alpha / (2 if method.get("use_rslora") else 4)
        name = "model.layers.1.mlp.up_proj"
        a, b = (weights[f"{name}.lora_{part}.default.weight"].float() for part in "AB")
        folded = base_of(config).get_submodule(name).weight.float() + scale * (b @ a)
        found = whole.get_submodule(name).weight
        assert found.dtype is DTYPES[precision]
        limit = {Precision.fp32: 1e-6, Precision.bf16: 2**-8}[precision]  # rounded once
        assert torch.allclose(found.float(), folded, rtol=limit, atol=1e-7)
        assert (found.float() - folded.to(found.dtype).float()).abs().gt(1e-7).float().mean() < 0.001
    if "modules_to_save" in method:
        assert whole.lm_head.weight.equal(weights["lm_head.weight"])


GPT2 = {"model_type": "gpt2", "n_embd": 64, "n_layer": 1, "n_head": 4, "n_positions": 128, "tie_word_embeddings": True}


@pytest.mark.parametrize(
    ("fields", "embedding"), [({"tie_word_embeddings": True}, "embed_tokens"), (GPT2, "wte")], ids=["llama", "gpt2"]
)
def test_tied_and_resized_embeddings_are_exported_so_that_peft_computes_the_same(
    fields: Dict[str, Any], embedding: str, tmp_path: Path
) -> None:
    import peft  # noqa: F401  # libraries that it loads warn

    config = lora_config(save_tiny_model(tmp_path / "model", **fields), modules_to_save=[embedding])
    model = base_of(config)
    model.resize_token_embeddings(261)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = Lora().apply(model, config).eval()
        weights = trained(model)
        assert model.lm_head.weight is model.get_input_embeddings().weight
        out = export(config, model, weights, tmp_path / "adapter")
        opened = open_exported(out).eval()
    assert not caught, "a chat would begin with warnings"
    assert logits(opened).equal(logits(model))
    (tmp_path / "model").rename(tmp_path / "moved")
    with pytest.raises(ConfigError, match=r"holds an adapter of .*/model, which does not exist"):
        open_exported(out)
    write_json(out / "adapter_config.json", read_json(out / "adapter_config.json") | {"base_model_name_or_path": None})
    for made, fix in (("RUN_DIR", ""), (tmp_path, "run.yaml"), (tmp_path, "export-merged/")):
        if fix:
            (tmp_path / fix).mkdir() if fix.endswith("/") else (tmp_path / fix).touch()
        with pytest.raises(ConfigError, match="random weights") as error:
            open_exported(out)
        merge = "" if fix.endswith("/") else f"ftdist export {made} --merged && "
        assert error.value.fix == f"{merge}ftdist chat {made}/export-merged"


def test_a_module_inside_another_one_that_is_saved_is_a_part_of_it(tmp_path: Path) -> None:
    """A pattern easily matches both. PEFT cannot read an adapter that names both."""
    config = lora_config(save_tiny_model(tmp_path / "model"), modules_to_save=["layers.0.mlp*", "lm_head"])
    model = Lora().apply(base_of(config), config).eval()
    weights = trained(model)
    assert sorted(name for name in weights if "lora_" not in name) == [
        "lm_head.weight", *(f"model.layers.0.mlp.{part}_proj.weight" for part in ("down", "gate", "up"))
    ]  # fmt: skip
    out = export(config, model, weights, tmp_path / "adapter")
    assert read_json(out / "adapter_config.json")["modules_to_save"] == ["model.layers.0.mlp", "lm_head"]
    assert logits(open_exported(out).eval()).equal(logits(model))


@pytest.mark.parametrize("model_type", ["phimoe", "longcat_flash", "laguna", "zamba"])
def test_only_layers_whose_adapters_work_get_one(model_type: str, tmp_path: Path) -> None:
    """A router that is a linear layer but returns two tensors, one whose weight another module reads, layers whose
    tensors PEFT renames when it reads them, layers that share their weights."""
    save_tiny(model_type, tmp_path / "model")
    config = lora_config(tmp_path / "model")
    model = Lora().apply(base_of(config), config).eval()
    weights = trained(model)
    expected = logits(model)
    opened = open_exported(export(config, model, weights, tmp_path / "adapter")).eval()
    assert torch.allclose(logits(opened), expected, atol=1e-5)
    merged = tmp_path / "merged"
    merged.mkdir()
    model.generation_config.save_pretrained(merged)
    export_merged(weights, base_of(config).config, merged, config)  # compares the logits


def test_weights_that_are_not_those_of_the_adapter_are_refused(tmp_path: Path) -> None:
    config = lora_config(save_tiny_model(tmp_path / "model"))
    model = Lora().apply(base_of(config), config)
    weights = trained(model)
    name = next(iter(weights))
    empty = {**weights, name: weights[name][:0]}  # what a rank holds of a parameter that is sharded
    with pytest.raises(CheckpointError, match="does not fit the adapters"):
        export(config, model, empty, tmp_path / "adapter")


def test_a_chat_with_an_adapter_whose_base_has_changed_is_refused(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "model")
    config = tiny_config(tmp_path, "method.kind=lora")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.yaml").write_text(dump_config(config))
    model = Lora().apply(base_of(config), config)
    out = export(config, model, trained(model), tmp_path / "run" / "export")
    bytes_tokenizer().save_pretrained(out)
    write_json(out / EXPORT_MARK, {"base": identity_of_base(config)})
    load(out)
    save_tiny_model(base, initializer_range=0.03)
    with pytest.raises(CheckpointError, match="export holds only the trained parameters, and the base model now has"):
        load(out)
    shutil.copytree(out, tmp_path / "alone")
    load(tmp_path / "alone")
