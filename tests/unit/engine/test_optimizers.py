"""Which parameters are in which group: weight decay, LoRA+, Muon's matrices. tests/ranks/ has the numbers."""

import sys
from typing import Any, Dict, Set

import pytest

from ftdist.base.errors import ConfigError
from ftdist.config.optim import OPTIMIZERS, OptimConfig, OptimizerKind, OptimizerSpec, optimizer_of, values_of
from tests.helpers.tiny import LLAMA


def _model(**changes: Any) -> Any:
    """Return a model without weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    fields = {**LLAMA, "num_hidden_layers": 1, **changes}
    del fields["model_type"]
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**fields))
        for name in ("lora_A", "lora_B"):
            setattr(model.model.layers[0], name, torch.nn.ModuleDict({"default": torch.nn.Linear(4, 4, bias=False)}))
    return model


def _groups(model: Any, **settings: Any) -> Dict[Any, Set[str]]:
    """Return the names of the parameters by the settings of their group."""
    from ftdist.engine.optimizers import parameter_groups

    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, OptimConfig(weight_decay=0.1, **settings))
    return {tuple(value for key, value in group.items() if key != "params"): {names[id(p)] for p in group["params"]}
            for group in groups}  # fmt: skip


LAYER = "model.layers.0."
NORMS = {f"{LAYER}input_layernorm.weight", f"{LAYER}post_attention_layernorm.weight", "model.norm.weight"}
MATRICES = {f"{LAYER}self_attn.{name}_proj.weight" for name in "qkvo"} | {
    f"{LAYER}mlp.{name}_proj.weight" for name in ("gate", "up", "down")}  # fmt: skip
A, B = {f"{LAYER}lora_A.default.weight"}, {f"{LAYER}lora_B.default.weight"}
OUTER = {"model.embed_tokens.weight", "lm_head.weight"}


def test_norms_have_no_weight_decay_and_b_another_rate() -> None:
    model = _model()
    assert _groups(model) == {(0.1, 1.0): MATRICES | A | B | OUTER, (0.0, 1.0): NORMS}
    assert _groups(model, lora_plus_ratio=16.0) == {
        (0.1, 1.0): MATRICES | A | OUTER, (0.1, 16.0): B, (0.0, 1.0): NORMS,
    }  # fmt: skip


@pytest.mark.parametrize("tied", [False, True])
def test_muon_leaves_embeddings_head_and_norms_to_adamw(tied: bool) -> None:
    outer = OUTER - {"lm_head.weight"} if tied else OUTER
    model = _model(tie_word_embeddings=tied)
    assert _groups(model, optimizer=OptimizerKind.muon, lora_plus_ratio=2.0) == {
        (0.1, 1.0, True): MATRICES | A, (0.1, 2.0, True): B, (0.1, 1.0, False): outer, (0.0, 1.0, False): NORMS,
    }  # fmt: skip


def test_without_bitsandbytes_one_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from ftdist.engine.optimizers import build_optimizer

    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ConfigError) as caught:
        build_optimizer(OptimConfig(optimizer=OptimizerKind.adamw_8bit), _model())
    assert "optim.optimizer=adamw_8bit needs bitsandbytes" in caught.value.found
    assert "ftdist[quant]" in caught.value.fix and "or optim.optimizer=adamw" in caught.value.fix


def _states(optimizer: Any, parameter: Any) -> Dict[str, Any]:
    """Return the shape and type of each state of a parameter."""
    return {name: (tuple(value.shape), value.dtype) for name, value in optimizer.state[parameter].items()}


@pytest.mark.parametrize("shape", [(4, 6), (6,)])
@pytest.mark.parametrize("kind", [*(kind for kind in OptimizerKind if kind is not OptimizerKind.adamw_8bit), None])
def test_empty_states_are_those_that_the_optimizer_makes(kind: Any, shape: Any) -> None:
    """None: an optimizer that ftdist does not have. Its entry in ``OPTIMIZERS`` is enough."""
    import torch

    from ftdist.engine.muon_adamw import MATRICES
    from ftdist.engine.optimizers import BUILDERS, empty_state

    parameter = torch.nn.Parameter(torch.ones(shape))
    groups = [{"params": [parameter], MATRICES: len(shape) == 2}]
    if kind is None:
        optimizer, spec = torch.optim.RMSprop(groups), OptimizerSpec(("square_avg",))
    else:
        optimizer, spec = BUILDERS[kind](groups, values_of(OptimConfig(optimizer=kind))), OPTIMIZERS[kind]
    parameter.grad = torch.ones(shape)
    optimizer.step()
    made = _states(optimizer, parameter)
    optimizer.state[parameter] = empty_state(optimizer, spec, parameter, 1)
    assert _states(optimizer, parameter) == made


@pytest.mark.parametrize("size", [64, 4096], ids=["fp32", "blocks"])
@pytest.mark.parametrize("kind", [kind for kind, spec in OPTIMIZERS.items() if spec.paged_states])
def test_empty_states_of_bitsandbytes_are_those_that_it_makes(kind: OptimizerKind, size: int) -> None:
    """On a CPU it makes plain states in place of pages."""
    import torch

    from ftdist.engine.optimizers import build_optimizer, empty_state, without_pages

    optim, model = OptimConfig(optimizer=kind, paged=True), torch.nn.Linear(64, size // 64, bias=False)
    optimizer, spec = build_optimizer(optim, model), optimizer_of(optim)
    assert optimizer.is_paged and spec.bytes_per_parameter == OPTIMIZERS[kind].bytes_per_parameter
    model.weight.grad = torch.ones_like(model.weight)
    with without_pages(optimizer):
        optimizer.step()
        assert not optimizer.is_paged and optimizer.state
    assert optimizer.is_paged and not optimizer.state, "pages are never freed"
    optimizer.step()
    made = {name: getattr(value, "shape", value) for name, value in optimizer.state[model.weight].items()}
    empty = empty_state(optimizer, spec, model.weight, 1)
    assert {name: getattr(value, "shape", value) for name, value in empty.items()} == made


def test_states_of_another_shape_must_be_known() -> None:
    import torch

    from ftdist.engine.optimizers import empty_state

    weight = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(NotImplementedError, match="Rprop keeps row_sums"):
        empty_state(torch.optim.Rprop([weight]), OptimizerSpec(("prev",), ("row_sums",)), weight, 1)
