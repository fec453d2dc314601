"""Fused weights can be freed after the forward and come back for the backward, as with ZeRO-3."""

from typing import Any, Dict

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from transformers import AutoConfig, AutoModelForCausalLM

from ftdist.engine.gathered_views import save_no_views
from tests.helpers.families import FAMILIES, OTHER_FAMILIES

IDS = torch.arange(10, 40)[None] * 7 % 250


def _model(name: str, experts: str) -> Any:
    fields = dict({**FAMILIES, **OTHER_FAMILIES}[name])
    arch = AutoConfig.for_model(fields.pop("model_type"), **fields)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(arch, dtype=torch.float32, experts_implementation=experts)


def _gradients(model: Any) -> Dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("name", "experts"),
    [("mixtral", "grouped_mm"), ("mixtral", "eager"), ("gpt_oss", "grouped_mm")],
)
def test_weights_that_are_freed_between_forward_and_backward_give_the_same_gradients(name: str, experts: str) -> None:
    model = _model(name, experts)
    model(input_ids=IDS, use_cache=False).logits.square().sum().backward()
    expected = _gradients(model)
    model.zero_grad()
    fused = [p for module in save_no_views(model) for p in module.parameters(recurse=False)]
    assert fused
    loss = model(input_ids=IDS, use_cache=False).logits.square().sum()
    whole = [p.data.clone() for p in fused]
    memory = [StorageWeakRef(p.untyped_storage()) for p in fused]
    for p in fused:
        p.data = torch.empty(0)
    assert all(storage.expired() for storage in memory), "autograd still holds weights"
    for p, weights in zip(fused, whole, strict=True):
        p.data = weights
    loss.backward()
    found = _gradients(model)
    assert found.keys() == expected.keys()
    assert all(torch.equal(gradient, expected[key]) for key, gradient in found.items())
