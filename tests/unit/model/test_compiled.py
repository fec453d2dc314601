"""Compiled layers: gradients, the number of compilations, and layers that are not compiled."""

from collections.abc import Iterator
from typing import Any, Dict, Tuple

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from ftdist.base.errors import ConfigError
from ftdist.config.schema import Recompute, TrainConfig
from ftdist.model import compiled
from ftdist.model.attention_plan import BY_DOCUMENT, PLAIN
from ftdist.model.compiled import compile_layers
from ftdist.model.exactness import micro_batch
from ftdist.model.forward import forward_logits, set_plan
from ftdist.model.recompute import set_recomputation

LAYERS = 2
PARTS = 4
"""Parts of a layer around its attention, which is not compiled: two of the layer, two of its attention module."""


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")  # the graphs of inductor, but it compiles no C++
    yield
    from torch._dynamo import callback, reset

    callback.callback_handler.clear()
    reset()


def _model(model_type: str = "llama", **more: Any) -> Any:
    torch.manual_seed(0)
    arch = AutoConfig.for_model(
        model_type, hidden_size=32, num_attention_heads=4, num_key_value_heads=2, intermediate_size=48, vocab_size=50,
        num_hidden_layers=LAYERS, pad_token_id=0, **more,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(arch, attn_implementation=BY_DOCUMENT.implementation).train()
    set_plan(model, BY_DOCUMENT)
    return model


def _gradients(model: Any, *lengths: int) -> Dict[str, torch.Tensor]:
    model.zero_grad()
    batch = micro_batch([torch.arange(length) * 7 % 50 for length in lengths])
    forward_logits(model, batch, torch.arange(sum(lengths))).square().mean().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def _compare(mode: Recompute, *rows: Tuple[int, ...]) -> compiled.Compiled:
    plain, model = _model(), _model()
    set_recomputation(model, TrainConfig(gradient_checkpointing=mode), BY_DOCUMENT)
    layers = compile_layers(model)
    weights = {p.untyped_storage().data_ptr(): p for layer in layers.layers for p in layer.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        weight = weights.get(tensor.untyped_storage().data_ptr(), tensor)
        assert tensor is weight, "ZeRO-3 could not free a weight whose view is kept for the backward pass"
        return tensor

    for lengths in rows:
        expected = _gradients(plain, *lengths)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            found = _gradients(model, *lengths)
        for name, gradient in expected.items():
            assert (found[name] - gradient).norm() <= 1e-6 * gradient.norm(), name
    return layers


@pytest.mark.thorough
def test_packed_rows_of_any_documents_need_one_compilation_of_each_part() -> None:
    layers = _compare(Recompute.none, (20, 30), (7, 11, 13), (64, 33))
    assert layers.count == PARTS and len(layers.layers) == LAYERS
    assert layers.news().startswith(f"compiled {PARTS} parts of layers in ") and layers.news() == ""


@pytest.mark.slow
@pytest.mark.parametrize("mode", list(Recompute))
def test_rows_of_one_document_are_compiled_once_more_in_each_mode_of_recomputation(mode: Recompute) -> None:
    assert _compare(mode, (20, 30), (50,), (3, 1, 40), (31,)).count == PARTS + 1


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_code_that_inductor_writes_gives_the_same_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "BACKEND", "inductor")
    monkeypatch.setenv("_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR", "0")  # inductor sets it; restored after the test
    assert _compare(Recompute.none, (20, 30), (7, 11, 13)).count == PARTS


def test_evaluation_compiles_nothing() -> None:
    plain, model = _model(), _model()
    layers = compile_layers(model)
    batch = micro_batch([torch.arange(5), torch.arange(3)])
    with torch.no_grad():
        found, expected = (forward_logits(one, batch, torch.arange(8)) for one in (model, plain))
    assert torch.equal(found, expected) and layers.count == 0
    assert type(model.model.layers[0]).__name__ == "LlamaDecoderLayer", "transformers finds layers by this name"


def test_layers_with_experts_are_left_out_and_a_model_of_such_layers_is_refused() -> None:
    model = _model("mixtral", num_local_experts=4, num_experts_per_tok=2)
    with pytest.raises(ConfigError, match="no layer of mixtral can be compiled: the number of tokens of an expert"):
        compile_layers(model)


def test_layers_with_quantized_weights_are_left_out() -> None:
    model = _model()
    model.model.layers[0].mlp.up_proj.weight.quant_state = "packed"
    layers = compile_layers(model)
    assert layers.left_out == {"its weights are quantized": 1} and layers.layers == [model.model.layers[1]]


def test_without_a_compiler_it_is_refused() -> None:
    from torch._inductor import config

    with (
        config.patch({"cpp.cxx": ("no-such-compiler",)}),
        pytest.raises(ConfigError, match="no C\\+\\+ compiler") as error,
    ):
        compile_layers(_model())
    assert "train.compile=none" in error.value.fix


def test_a_layer_that_runs_several_times_in_a_step_is_refused_with_zero_3() -> None:
    model = _model()
    set_plan(model, PLAIN)
    with pytest.raises(ConfigError, match=r"needs a forward pass of its own.*\n.*\n.*train.compile=none"):
        compile_layers(model, sharded=True)
    assert len(compile_layers(model).layers) == LAYERS
