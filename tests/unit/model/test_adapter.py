"""An adapter is added to the weights of a model as PEFT merges it."""

from pathlib import Path
from typing import Any, Dict

import pytest
import torch
from transformers import AutoModelForCausalLM

from ftdist.base.errors import ConfigError
from ftdist.model.adapter import fold_adapter
from tests.helpers.adapters import save_peft_adapter
from tests.helpers.tiny import save_tiny_model

GPT2 = {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128}


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        ({}, {"target_modules": ["q_proj", "up_proj"]}),
        ({}, {"target_modules": r".*layers\.1.*proj", "use_rslora": True, "modules_to_save": ["lm_head"]}),
        ({}, {"target_modules": ["down_proj"], "use_dora": True}),
        (GPT2, {"target_modules": ["c_attn"], "use_dora": True, "fan_in_fan_out": True}),
        ({}, {"target_modules": ["q_proj", "lm_head"]}),
    ],
    ids=["lora", "rslora", "dora", "gpt2", "head"],
)
@torch.no_grad()
def test_the_sum_is_that_of_peft(model: Dict[str, Any], settings: Dict[str, Any], tmp_path: Path) -> None:
    from peft import PeftModel

    base = save_tiny_model(tmp_path / "model", **model)
    adapter = save_peft_adapter(base, tmp_path / "adapter", **settings)
    expected = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).merge_and_unload()
    plain, found = (AutoModelForCausalLM.from_pretrained(base) for _ in range(2))
    fold_adapter(found, adapter)
    changed = 0
    for (name, one), other, before in zip(
        found.named_parameters(), expected.parameters(), plain.parameters(), strict=True
    ):
        assert torch.allclose(one, other, rtol=1e-6, atol=1e-7), name
        changed += not one.equal(before)
    assert changed
    half = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    before_half = {name: p.clone() for name, p in half.named_parameters()}
    fold_adapter(half, adapter)
    for name, one in half.named_parameters():
        if not one.equal(before_half[name]) and "lm_head" not in name:
            exact = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).float()
            fold_adapter(exact, adapter)
            assert one.equal(exact.get_parameter(name).bfloat16()), "rounded more than once"
            break


def test_every_rank_gathers_the_layers_in_the_same_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names in a set have another order in every process. Ranks would wait for each other, or mix up layers."""
    import ftdist.model.adapter as module

    base = save_tiny_model(tmp_path / "model")
    adapter = save_peft_adapter(base, tmp_path / "adapter", target_modules=r".*proj", modules_to_save=["lm_head"])
    model, order, gathered = AutoModelForCausalLM.from_pretrained(base), [], module.gathered
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    monkeypatch.setattr(module, "gathered", lambda weights: (order.append(names[id(weights[0])]), gathered(weights))[1])
    fold_adapter(model, adapter)
    assert len(order) == 15 and order == [*sorted(order[:14]), "lm_head.weight"]


@pytest.mark.parametrize(
    ("model", "found"),
    [
        ({"hidden_size": 32}, "lm_head.weight has the shape [259, 64], and the model needs [259, 32]"),
        ({"num_hidden_layers": 1}, "layers.1.self_attn.q_proj.lora_A.weight has the shape"),
        ({"vocab_size": 300}, "lm_head.weight has the shape [259, 64], and the model needs [300, 64]"),
        ({"num_hidden_layers": 3}, "layers.2.self_attn.q_proj.lora_A.weight is missing, and the model needs [4, 64]"),
    ],
)
def test_an_adapter_of_another_model_is_refused(model: Dict[str, Any], found: str, tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "model")
    adapter = save_peft_adapter(base, tmp_path / "adapter", target_modules=["q_proj"], modules_to_save=["lm_head"])
    other = AutoModelForCausalLM.from_pretrained(save_tiny_model(tmp_path / "other", **model))
    with pytest.raises(ConfigError) as caught:
        fold_adapter(other, adapter)
    assert found in caught.value.found and "model.adapter" in caught.value.fix


def test_an_adapter_of_a_head_that_is_the_embedding_is_refused(tmp_path: Path) -> None:
    """PEFT adds to the head alone, and a sum would change the embedding too."""
    base = save_tiny_model(tmp_path / "model", tie_word_embeddings=True)
    adapter = save_peft_adapter(base, tmp_path / "adapter", target_modules=["q_proj", "lm_head"])
    with pytest.raises(ConfigError, match="has an adapter for lm_head, but the model has one tensor for") as caught:
        fold_adapter(AutoModelForCausalLM.from_pretrained(base), adapter)
    assert "leave out model.adapter" in caught.value.fix
