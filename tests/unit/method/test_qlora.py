"""Adapters beside matrices in 4 bits: the start, the export, and the two ways to merge."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ftdist.base.errors import ConfigError
from ftdist.config.method import MethodKind
from ftdist.config.schema import Precision
from ftdist.method.check import check_run
from ftdist.method.qlora import Qlora, export_merged_quantized
from ftdist.model.load import load_whole
from ftdist.model.opened import open_exported
from ftdist.model.quantized import QUANTIZATION, is_quantized, quantize, quantized_layers
from ftdist.run.file_names import EXPORT_MARK
from ftdist.run.model_facts import describe_method, write_facts
from ftdist.verify.reference_model import plain_base, stored
from tests.helpers.tiny import LLAMA, save_tiny_model
from tests.unit.method.test_lora import DTYPES, base_of, export, logits, lora_config, trained


def qlora_config(path: Path, precision: Precision = Precision.bf16, **method: Any) -> Any:
    return lora_config(path, precision, kind=MethodKind.qlora, **method)


@pytest.mark.parametrize("precision", [Precision.fp32, Precision.bf16])
def test_before_the_first_step_the_logits_are_those_of_the_base_in_4_bits(precision: Precision, tmp_path: Path) -> None:
    config = qlora_config(save_tiny_model(tmp_path / "model"), precision, modules_to_save=["layers.0.mlp"])
    base, dtype = base_of(config), DTYPES[precision]
    full = logits(base)
    quantize(base, quantized_layers(base, ["model.layers.0.mlp"]), dtype)
    model = Qlora().apply(base_of(config), config)
    assert logits(model.eval()).equal(logits(base)) and not logits(base).equal(full)
    for name, parameter in model.named_parameters():
        assert parameter.dtype is dtype and parameter.requires_grad == ("lora_" in name or "layers.0.mlp" in name)


def test_layers_that_mamba_reads_itself_have_no_adapter_and_no_4_bits(tmp_path: Path) -> None:
    """Its code multiplies with the weight of dt_proj. An adapter would change nothing, and packed numbers fail."""
    fields = {"model_type": "mamba", "state_size": 4, "time_step_rank": 8}
    config = qlora_config(save_tiny_model(tmp_path / "model", **fields), Precision.fp32)
    model = Qlora().apply(base_of(config), config).eval()
    adapted = {name.split(".")[-4] for name, p in model.named_parameters() if p.requires_grad}
    packed = {name.split(".")[-3] for name, p in model.named_parameters() if is_quantized(p)}
    assert adapted == packed == {"in_proj"}
    before = logits(model)
    trained(model)
    assert not logits(model).equal(before)
    for name, weight in plain_base(config).named_parameters():
        assert is_quantized(weight) == (".in_proj." in name)
    config.method.target_modules = ["out_proj"]
    with pytest.raises(ConfigError, match="'out_proj' cannot have an adapter in a mamba model: another module"):
        Qlora().apply(base_of(config), config)


def test_the_reference_of_a_model_with_random_weights_has_the_same_matrices() -> None:
    config = qlora_config(Path(), Precision.fp32)
    config.model.path, config.model.config = None, dict(LLAMA)
    packed = {name: stored(p) for name, p in Qlora().apply(load_whole(config), config).named_parameters()
              if is_quantized(p)}  # fmt: skip
    found = dict(plain_base(config).named_parameters())
    assert len(packed) == 14
    for name, numbers in packed.items():
        assert stored(found[name.replace(".base_layer", "")]).equal(numbers)


@pytest.mark.parametrize("method", [{"modules_to_save": ["lm_head"]}, {"use_dora": True}], ids=str)
def test_an_export_is_opened_in_4_bits_and_the_nearer_merge_is_written(method: Any, tmp_path: Path) -> None:
    config = qlora_config(save_tiny_model(tmp_path / "model"), **method)
    model = Qlora().apply(base_of(config), config).eval()
    weights = trained(model)
    expected = logits(model)
    out = export(config, model, weights, tmp_path / "adapter")
    assert not logits(open_exported(out).eval()).equal(expected), "the base has 16 bits"
    (out / EXPORT_MARK).write_text(json.dumps({"quantization": QUANTIZATION}))
    assert logits(open_exported(out).eval()).equal(expected)

    merged = tmp_path / "merged"
    merged.mkdir()
    base_of(config).generation_config.save_pretrained(merged)
    line = export_merged_quantized(weights, base_of(config).config, merged, config)
    assert line.startswith("merged into the dequantized base; ") and "; if merged into the 16-bit base, by" in line
    assert "quantization_config" not in (merged / "config.json").read_text()
    whole = open_exported(merged).eval()
    assert whole.dtype is torch.bfloat16
    near, far = float((logits(whole) - expected).abs().mean()), float((logits(base_of(config)) - expected).abs().mean())
    assert near < far / 10


def test_the_banner_and_the_plan_know_how_many_parameters_have_4_bits(tmp_path: Path) -> None:
    config = qlora_config(save_tiny_model(tmp_path / "model"), layers_to_transform=[0], modules_to_save=["lm_head"])
    config.cache_dir = str(tmp_path)
    facts = check_run(config)
    assert facts.quantized == 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128)
    write_facts(config, facts)
    assert describe_method(config).endswith(f"; {facts.quantized:,} have 4 bits")
