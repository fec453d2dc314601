"""What layers keep for the backward pass: the gradients stay the same, and the bytes are those that plan/ computes."""

from dataclasses import replace
from typing import Any, Dict, List, Set, Tuple

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from ftdist.base.errors import ConfigError
from ftdist.config.schema import Precision, Recompute, TrainConfig
from ftdist.model import recompute
from ftdist.model.attention_plan import BY_DOCUMENT, AttentionPlan
from ftdist.model.exactness import micro_batch
from ftdist.model.forward import forward_logits, set_plan
from ftdist.model.host_copies import HostCopies
from ftdist.model.load import DTYPES
from ftdist.model.recompute import is_kept, set_recomputation
from ftdist.plan.activations import LayerSizes, kept_activations, recomputed_layer_bytes, whole_layer_bytes

SIZES = LayerSizes(hidden=64, heads=4, kv_heads=2, head_dim=16, intermediate=160)
DOCUMENTS = (20, 30)
LAYERS = 4
EAGER = replace(BY_DOCUMENT, implementation="eager")
FULL, SELECTIVE = Recompute.full, Recompute.selective
FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default


def _model(plan: AttentionPlan = BY_DOCUMENT, precision: Precision = Precision.fp32, **more: Any) -> Any:
    torch.manual_seed(0)
    arch = AutoConfig.for_model(
        "llama", hidden_size=64, num_attention_heads=4, num_key_value_heads=2, intermediate_size=160, vocab_size=50,
        num_hidden_layers=LAYERS, pad_token_id=0, **more,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(
        arch, dtype=DTYPES[precision], attn_implementation=plan.implementation
    ).train()
    set_plan(model, plan)
    return model


def _batch(device: str = "cpu", times: int = 1) -> Any:
    return micro_batch([torch.arange(times * length, device=device) * 7 % 50 for length in DOCUMENTS])


def _gradients(model: Any, times: int = 1) -> Dict[str, torch.Tensor]:
    torch.manual_seed(1)  # of dropout
    batch = _batch(str(model.device), times)
    logits = forward_logits(model, batch, torch.arange(len(batch.input_ids[0]), device=model.device))
    logits.float().square().mean().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("offload", [False, True], ids=["kept", "offloaded"])
@pytest.mark.parametrize(("mode", "every"), [(FULL, 1), (FULL, 3), (SELECTIVE, 1), (SELECTIVE, 2)])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_gradients_are_those_without_recomputation(mode: Recompute, every: int, offload: bool, dropout: float) -> None:
    """Also with dropout in attention: the recomputation draws the same random numbers."""
    expected = _gradients(_model(attention_dropout=dropout))
    model = _model(attention_dropout=dropout)
    set_recomputation(model, TrainConfig(gradient_checkpointing=mode, recompute_every=every,
                                         offload_activations=offload), BY_DOCUMENT)  # fmt: skip
    for _ in range(2):  # the second step starts from nothing
        model.zero_grad()
        found = _gradients(model)
        assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("mode", "plan", "attention", "linear"),
    [
        (FULL, BY_DOCUMENT, 2, 2), (SELECTIVE, BY_DOCUMENT, 1, 2), (Recompute.none, BY_DOCUMENT, 1, 1),
    ],
    ids=["full", "selective", "none"],
)  # fmt: skip
def test_selective_recomputation_runs_attention_once(
    mode: Recompute, plan: AttentionPlan, attention: int, linear: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: List[str] = []

    class Count(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            counted.append(func._schema.name)
            return func(*args, **(kwargs or {}))

    model = _model(plan)
    set_recomputation(model, TrainConfig(gradient_checkpointing=mode), plan)
    with Count():
        _gradients(model)
    assert counted.count(FLASH._schema.name) == LAYERS * len(DOCUMENTS) * attention
    assert counted.count("aten::silu") == LAYERS * linear


@pytest.mark.parametrize("every", [1, 2, 3])
def test_every_nth_layer_is_recomputed(every: int) -> None:
    model, calls = _model(), [0] * LAYERS
    set_recomputation(model, TrainConfig(recompute_every=every), BY_DOCUMENT)
    for number, layer in enumerate(model.model.layers):
        layer.mlp.register_forward_pre_hook(lambda *_, number=number: calls.__setitem__(number, calls[number] + 1))
    _gradients(model)
    assert calls == [2 if number % every == 0 else 1 for number in range(LAYERS)]


def test_a_model_that_recomputes_all_layers_or_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recompute, "GradientCheckpointingLayer", torch.nn.Bilinear)  # no layer of the model is one
    with pytest.raises(ConfigError) as error:
        set_recomputation(_model(), TrainConfig(recompute_every=2), BY_DOCUMENT)
    assert error.value.fix == "train.recompute_every=1"


@pytest.mark.gpu
@pytest.mark.parametrize("mode", [FULL, SELECTIVE])
def test_on_a_gpu_activations_wait_in_host_memory(mode: Recompute) -> None:
    """The gradients stay the same to the bit, and the device holds two layers instead of all."""
    times, peaks, found = 200, [], []
    for offload in (False, True):
        model = _model(precision=Precision.bf16).cuda()
        settings = TrainConfig(gradient_checkpointing=mode, offload_activations=offload)
        set_recomputation(model, settings, BY_DOCUMENT)
        for _ in range(2):  # the second step is the one that is measured
            model.zero_grad()
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            gradients = _gradients(model, times)
            torch.cuda.synchronize()
        peaks.append(torch.cuda.max_memory_allocated() - before)
        found.append(gradients)
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    each = recomputed_layer_bytes(SIZES, times * sum(DOCUMENTS), Precision.bf16, mode is SELECTIVE)
    assert peaks[0] - peaks[1] > (LAYERS - 2.5) * each


def test_attention_with_dropout_is_not_kept() -> None:
    """Its recomputation must draw random numbers, so that what follows draws the same ones as in the forward."""
    tensors = [torch.zeros(1)] * 3
    assert is_kept(FLASH, tensors, {}) and is_kept(FLASH, [*tensors, 0.0], {})
    assert not is_kept(FLASH, [*tensors, 0.1], {}) and not is_kept(FLASH, tensors, {"dropout_p": 0.1})
    assert not is_kept(torch.ops.aten.mm.default, tensors, {})


class _Saved:
    """Bytes of the storages that autograd saves in a ``with`` block, without parameters."""

    def __init__(self, model: Any) -> None:
        self._parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
        self._seen: Set[int] = set()
        self.kept: List[Tuple[int, torch.Tensor]] = []
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)

    def _pack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._parameters | self._seen:
            self._seen.add(storage.data_ptr())
            self.kept.append((storage.nbytes(), tensor))  # alive, so that its address is not used again
        return tensor

    @property
    def total(self) -> int:
        return sum(size for size, _ in self.kept)


def _saved_by_a_layer(model: Any) -> int:
    layer, saved, before = model.model.layers[1], _Saved(model), model.model.layers[1].forward
    rotary: List[torch.Tensor] = []

    def run(*args: Any, **kwargs: Any) -> Any:
        rotary.extend(kwargs["position_embeddings"])
        with saved.hooks:
            return before(*args, **kwargs)

    layer.forward = run
    forward_logits(model, _batch(), torch.zeros(1, dtype=torch.long))
    of_all_layers = {tensor.untyped_storage().data_ptr() for tensor in rotary}
    return sum(size for size, tensor in saved.kept if tensor.untyped_storage().data_ptr() not in of_all_layers)


@pytest.mark.parametrize("precision", list(Precision))
def test_the_bytes_of_a_layer_are_those_that_autograd_saves(precision: Precision) -> None:
    assert _saved_by_a_layer(_model(precision=precision)) == whole_layer_bytes(SIZES, sum(DOCUMENTS), precision)


@pytest.mark.parametrize("precision", list(Precision))
@pytest.mark.parametrize("mode", [FULL, SELECTIVE])
def test_the_bytes_of_a_recomputed_layer_are_those_that_are_kept(mode: Recompute, precision: Precision) -> None:
    model = _model(precision=precision)
    copies: List[torch.Tensor] = []

    class Counting(HostCopies):
        def pack(self, tensor: torch.Tensor) -> Any:
            packed = super().pack(tensor)
            copies.extend([] if packed is tensor else [tensor])
            return packed

    settings = TrainConfig(gradient_checkpointing=mode, offload_activations=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recompute, "HostCopies", Counting)
        set_recomputation(model, settings, BY_DOCUMENT)
    forward_logits(model, _batch(), torch.zeros(1, dtype=torch.long))
    measured = sum(tensor.numel() * tensor.element_size() for tensor in copies)
    assert measured == LAYERS * recomputed_layer_bytes(SIZES, sum(DOCUMENTS), precision, mode is SELECTIVE)


def test_only_two_layers_of_offloaded_activations_come_back_at_once() -> None:
    """And nothing stays if the backward pass never runs."""
    copies = HostCopies()
    packed = []
    for layer in range(4):
        copies.begin_layer()
        packed.append([copies.pack(torch.full((2,), float(10 * layer + number))) for number in range(2)])
    assert copies.unpack(packed[3][0]).tolist() == [30.0, 30.0]
    back = [[copy.back is not None for copy in layer] for layer in packed]
    assert back == [[False, False], [False, False], [True, True], [False, True]]  # one was taken
    assert copies.unpack(packed[3][1]).tolist() == [31.0, 31.0]
    assert copies.unpack(packed[2][0]).tolist() == [20.0, 20.0] and packed[3][0].back is None
    packed.clear()
    copies.begin_layer()
    assert len(copies._layers) == 1


@pytest.mark.parametrize(
    ("settings", "device", "host", "working"),
    [
        ({"gradient_checkpointing": Recompute.none}, 4 * 5144, 0, 0),
        ({}, 4 * 256, 0, 5144),
        ({"recompute_every": 3}, 2 * 256 + 2 * 5144, 0, 5144),
        ({"offload_activations": True}, 2 * 256, 4 * 256, 5144),
    ],
)
def test_what_all_layers_keep(settings: Dict[str, Any], device: int, host: int, working: int) -> None:
    """One token in fp32: 4·64 + 3·64 + 2·32 + 4·160 numbers, 2·64 + 4 + 2 of the norms and heads: 1,286 of them."""
    train = TrainConfig(precision=Precision.fp32, **settings)
    kept = kept_activations(train, SIZES, LAYERS, tokens=1)
    assert whole_layer_bytes(SIZES, 1, Precision.fp32) == 1286 * 4 == 5144
    assert (kept.device, kept.host, kept.working) == (device, host, working)
