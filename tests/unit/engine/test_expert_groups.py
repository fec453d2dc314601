"""Groups of experts compute what all experts of a layer compute together."""

import copy
from typing import Any, Dict

import pytest
import torch
from transformers import AutoConfig

from ftdist.base.errors import ConfigError
from ftdist.engine.expert_groups import group_experts, part_of
from ftdist.model.parts import auto_class
from tests.helpers.families import GROUPED

SIZES = {**GROUPED, "num_experts": 5, "num_local_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
         "head_dim": 16, "decoder_sparse_step": 1, "mlp_only_layers": []}  # fmt: skip


def build(model_type: str, **more: Any) -> Any:
    torch.manual_seed(0)
    return auto_class(arch := AutoConfig.for_model(model_type, **{**SIZES, **more})).from_config(arch).eval()


def numbers(model: Any) -> Dict[str, torch.Tensor]:
    """Return the logits of a text, and the gradient of each parameter as the model has it without groups."""
    logits = model(input_ids=torch.arange(5, 25)[None], use_cache=False).logits
    logits.square().mean().backward()
    found = {"logits": logits.detach()}
    for name, parameter in model.named_parameters():
        part = part_of(name, parameter)
        whole = found.setdefault(part.name, torch.full(part.shape, torch.nan)).view(-1)
        whole[part.start : part.start + parameter.numel()] = parameter.grad.reshape(-1)
    return found


@pytest.mark.parametrize("implementation", ["grouped_mm", "eager"])
@pytest.mark.parametrize("model_type", ["qwen3_moe", "gpt_oss"])  # gpt_oss: with biases, and transposed weights
@pytest.mark.parametrize("groups", [2, 99])
def test_logits_and_gradients_are_those_without_groups(model_type: str, groups: int, implementation: str) -> None:
    model = build(model_type)
    model.set_experts_implementation(implementation)
    grouped = copy.deepcopy(model)
    assert group_experts(grouped, groups) == model.config.num_hidden_layers
    assert sum("groups.0" in name and "bias" not in name for name, _ in grouped.named_parameters()) == 4
    expected, found = numbers(model), numbers(grouped)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name] - value).norm() <= 1e-5 * value.norm(), name


@pytest.mark.parametrize("implementation", ["grouped_mm", "eager"])
def test_a_group_without_tokens_gets_gradients_of_0(implementation: str) -> None:
    """On other ranks the same group may have tokens, and all ranks reduce its gradients together."""
    model = build("qwen3_moe")
    model.set_experts_implementation(implementation)
    for router in (layer.mlp.gate for layer in model.model.layers):
        torch.nn.init.zeros_(router.weight)  # all experts get the same score, and two of them get all tokens
    group_experts(model, 5)
    model(input_ids=torch.arange(5, 25)[None], use_cache=False).logits.square().mean().backward()
    gradients = [p.grad for name, p in model.named_parameters() if "groups" in name]
    assert all(gradient is not None for gradient in gradients)
    assert sum(bool(gradient.any()) for gradient in gradients) == 2 * 2 * 2  # two of five, in two layers


def test_experts_that_depend_on_each_other_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("qwen3_moe")
    kind = type(model.model.layers[0].mlp.experts)
    own = kind.forward
    monkeypatch.setattr(kind, "forward", lambda self, hidden, chosen, weights: own(self, hidden, chosen, weights)
                        * self.num_experts)  # fmt: skip
    with pytest.raises(ConfigError, match="groups of Qwen3MoeExperts do not compute what all experts together compute"):
        group_experts(model, 2)


def test_a_model_without_fused_experts_is_refused() -> None:
    with pytest.raises(ConfigError, match="this model has no experts that can be divided"):
        group_experts(build("llama"), 2)
