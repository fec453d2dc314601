"""The reference models of ``ftdist verify``."""

from typing import Any, Dict

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from ftdist.verify.reference_model import changed_weights

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


@pytest.mark.parametrize("saved", [[], ["lm_head"], ["embed_tokens", "lm_head"]])
def test_every_copy_of_a_tied_weight_is_compared_with_that_of_the_run(saved: Any) -> None:
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "vocab_size": 12}
    model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=1, tie_word_embeddings=True, **sizes))
    opened = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=saved or None))
    copies = {HEAD: "lm_head", EMBEDDING: "model.embed_tokens"}
    weights: Dict[str, torch.Tensor] = {}
    for name, parameter in opened.named_parameters():
        own = name.removeprefix("base_model.model.").replace(".modules_to_save.default.", ".")
        if ".original_module." not in name and own != HEAD:
            weights[own] = parameter.detach().clone()
    weights.setdefault(EMBEDDING, model.get_input_embeddings().weight.detach().clone())
    assert changed_weights(opened, weights) == []
    for name, module in copies.items():
        if module.rpartition(".")[2] in saved:
            copy = opened.get_submodule(f"base_model.model.{module}").modules_to_save["default"].weight
            with torch.no_grad():
                copy[3, 3] += 1
            assert changed_weights(opened, weights) == [name]
            with torch.no_grad():
                copy[3, 3] = weights[EMBEDDING][3, 3]
    weights["model.norm.weight"] += 1
    assert changed_weights(opened, weights) == ["model.norm.weight"]
