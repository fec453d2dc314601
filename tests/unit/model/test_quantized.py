"""Matrices in 4 bits: the numbers of transformers and bitsandbytes, which a forward pass does not change."""

import sys
from pathlib import Path
from typing import Any, Dict

import pytest
import torch
from transformers import AutoModelForCausalLM

from ftdist.base.errors import ConfigError
from ftdist.config.method import MethodConfig, MethodKind
from ftdist.model.quantized import import_bitsandbytes, is_quantized, quantize, quantized_layers, round_to_4_bits
from ftdist.verify.reference_model import _quantized, stored
from tests.helpers.tiny import save_tiny_model
from tests.unit.model.test_adapter import GPT2

IDS = torch.arange(3, 40)[None]


def loaded(folder: Path, dtype: torch.dtype) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


@pytest.mark.parametrize(
    ("changes", "dtype"),
    [
        ({}, torch.float32),
        ({"tie_word_embeddings": True, "attention_bias": True}, torch.bfloat16),
        (GPT2, torch.bfloat16),
    ],
    ids=["llama", "tied", "gpt2"],
)
@torch.no_grad()
def test_the_numbers_are_those_of_transformers(changes: Dict[str, Any], dtype: torch.dtype, tmp_path: Path) -> None:
    folder, kept = save_tiny_model(tmp_path / "model", **changes), ["model.layers.0.mlp.up_proj"]
    method = MethodConfig(MethodKind.qlora, modules_to_save=kept)
    expected = _quantized(str(folder), method, AutoModelForCausalLM, dtype=dtype)
    model = loaded(folder, dtype)
    quantize(model, quantized_layers(model, kept), dtype)
    packed = 0
    for (name, one), (same, other) in zip(model.named_parameters(), expected.named_parameters(), strict=True):
        assert name == same and stored(one).equal(stored(other)), name
        packed += is_quantized(one)
    assert packed == (8 if changes is GPT2 else 13)
    before = {name: stored(p).clone() for name, p in model.named_parameters()}
    logits = model(input_ids=IDS, use_cache=False).logits
    assert logits.equal(expected.eval()(input_ids=IDS, use_cache=False).logits)
    assert all(stored(p).equal(before[name]) for name, p in model.named_parameters()), "packed in another order"

    rounded = loaded(folder, dtype)
    round_to_4_bits(rounded, quantized_layers(rounded, kept))
    again = rounded(input_ids=IDS, use_cache=False).logits
    assert float((again - logits).abs().max()) <= (1e-5 if dtype is torch.float32 else 2e-2) * float(logits.abs().max())


def test_without_bitsandbytes_one_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ConfigError) as caught:
        import_bitsandbytes()
    assert "pip install 'ftdist[quant]'" in caught.value.fix
