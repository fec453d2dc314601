"""Attention, the loss head, compiled layers, other kernels and activations in host memory, on a CPU and on a GPU."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

import pytest

from tests.helpers.interpreter import interpret_triton

LENGTHS = (37, 9, 64, 20)
ARCH = {"vocab_size": 64, "hidden_size": 128, "intermediate_size": 160, "num_hidden_layers": 2, "head_dim": 64,
        "num_attention_heads": 2, "num_key_value_heads": 1, "pad_token_id": 0}  # fmt: skip
EVERYWHERE, ON_CUDA = ["documents", "mask"], ["varlen", "flex"]


def _model(device: str, implementation: str, dtype: Any) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    arch = AutoConfig.for_model("llama", **ARCH)
    model = AutoModelForCausalLM.from_config(arch, dtype=torch.float32, attn_implementation=implementation)
    model.config.use_cache = False
    return model.to(device=device, dtype=dtype).train()


def _documents(device: str) -> List[Any]:
    import torch

    draw = torch.Generator().manual_seed(0)
    return [torch.randint(1, ARCH["vocab_size"], (length,), generator=draw).to(device) for length in LENGTHS]


def _gradients(model: Any) -> Any:
    """Return the gradients of all parameters as one vector in fp64, on the host."""
    import torch

    return torch.cat([p.grad.double().cpu().view(-1) for p in model.parameters()])


def _alone(device: str, dtype: Any) -> Any:
    """Return the gradients of plain transformers, which runs each document alone with eager attention."""
    import torch.nn.functional as F

    model = _model(device, "eager", dtype)
    for document in _documents(device):
        logits = model(input_ids=document[None]).logits[0, :-1].float()
        F.cross_entropy(logits, document[1:], reduction="sum").backward()
    return _gradients(model)


def _in_a_row(device: str, dtype: Any, plan: Any, change: Callable[[Any], Any] = lambda model: model) -> Any:
    """Return the gradients of all documents in one row."""
    from itertools import pairwise

    import torch
    import torch.nn.functional as F

    from ftdist.model.exactness import micro_batch
    from ftdist.model.forward import forward_logits, set_plan

    model = _model(device, plan.implementation, dtype)
    set_plan(model, plan)
    change(model)
    row = micro_batch(_documents(device))
    trained = torch.cat([torch.arange(a + 1, b) for a, b in pairwise(row.limits)]).to(device)
    for _ in range(2):  # the second pass starts from nothing
        model.zero_grad()
        logits = forward_logits(model, row, trained - 1)
        F.cross_entropy(logits.float(), row.input_ids[0][trained], reduction="sum").backward()
    return _gradients(model)


def _off(found: Any, expected: Any) -> float:
    return float((found - expected).norm() / expected.norm())


def _plans(device: str, backend: str, dtype: Any) -> Any:
    import torch
    from transformers import AutoConfig

    from ftdist.config.schema import Attention
    from ftdist.model.attention_plan import candidates

    arch = AutoConfig.for_model("llama", **ARCH)
    return candidates(Attention[backend], arch, torch.device(device), dtype)[0]


def _attention(device: str, folder: Path, backend: str, shared: bool = True) -> Dict[str, float]:
    import torch

    from ftdist.model import attention

    attention.SHARED_KEYS &= shared
    exact = _alone(device, torch.float64)
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        if backend == "varlen" and dtype is torch.float32:
            continue
        plain, row = _alone(device, dtype), _in_a_row(device, dtype, _plans(device, backend, dtype))
        found |= {f"plain {dtype}": _off(plain, exact), f"row {dtype}": _off(row, exact)}
    return found


@pytest.mark.parametrize("backend", EVERYWHERE)
def test_gradients_of_a_row_are_those_of_its_documents(run: Any, backend: str) -> None:
    _check_attention(run(_attention, backend))


@pytest.mark.gpu
@pytest.mark.parametrize("device", ["cuda"])
@pytest.mark.parametrize("backend", ON_CUDA)
def test_gradients_of_the_kernels_for_cuda_are_those_of_the_documents(run: Any, device: str, backend: str) -> None:
    _check_attention(run(_attention, backend))


@pytest.mark.gpu
@pytest.mark.parametrize("device", ["cuda"])
def test_varlen_with_copies_of_shared_keys(run: Any, device: str) -> None:
    """As for PyTorch before 2.12."""
    _check_attention(run(_attention, "varlen", False))


def _check_attention(found: Dict[str, float]) -> None:
    """In fp32 the gradients are equal. In bf16 they are as near to those of fp64 as plain transformers is."""
    assert found.get("row torch.float32", 0.0) < 1e-5
    assert found["row torch.bfloat16"] < 1.5 * found["plain torch.bfloat16"] < 0.2


def _isolation(device: str, folder: Path, backend: str) -> Dict[str, float]:
    import torch

    from ftdist.model.forward import set_plan
    from ftdist.model.isolation import prove_isolation

    plan = _plans(device, backend, torch.bfloat16)
    model = _model(device, plan.implementation, torch.bfloat16)
    set_plan(model, plan)
    proof = prove_isolation(model, ARCH["vocab_size"], torch.device(device), torch.bfloat16, backend)
    return vars(proof)


@pytest.mark.parametrize("backend", EVERYWHERE)
def test_documents_do_not_see_each_other(run: Any, backend: str) -> None:
    found = run(_isolation, backend)
    assert found["crossing"] == found["looking_ahead"] == 0.0


def _head(device: str, folder: Path) -> Dict[str, Any]:
    import torch

    from ftdist.objective.chunked import token_logprobs

    count, vocabulary, hidden, chunk = 300, 2000, 64, 32
    draw = torch.Generator().manual_seed(0)
    states, weight = (torch.randn(*shape, generator=draw, dtype=torch.float64) for shape in
                      ((count, hidden), (vocabulary, hidden)))  # fmt: skip
    targets = torch.randint(vocabulary, (count,), generator=draw).to(device)

    def run(dtype: Any, loss: Callable[[Any, Any], Any]) -> Tuple[Any, ...]:
        inputs = [t.to(device=device, dtype=dtype, copy=True).requires_grad_() for t in (states, weight)]
        value = loss(*inputs)
        value.backward()
        return (value.detach()[None].double().cpu(), *(tensor.grad.double().cpu() for tensor in inputs))

    def plain(h: Any, w: Any) -> Any:
        exact = torch.float64 if h.dtype == torch.float64 else torch.float32
        return torch.nn.functional.cross_entropy((h @ w.t()).to(exact), targets, reduction="sum")

    exact, found = run(torch.float64, plain), {}
    for dtype in (torch.float32, torch.bfloat16):
        ways = {"plain": plain}
        for equal in (False, True):
            ways[f"own {equal}"] = lambda h, w, equal=equal: (
                -token_logprobs([(h, w)], None, targets, vocabulary, equal=equal, chunk=chunk).sum()
            )
        found |= {f"{name} {dtype}": [_off(*pair) for pair in zip(run(dtype, way), exact, strict=True)]
                  for name, way in ways.items()}  # fmt: skip
    return found


def test_the_loss_head_is_as_exact_as_the_plain_computation(run: Any) -> None:
    found = run(_head)
    for equal in (False, True):
        for dtype, least in (("torch.float32", 1e-6), ("torch.bfloat16", 1e-3)):
            for own, plain in zip(found[f"own {equal} {dtype}"], found[f"plain {dtype}"], strict=True):
                assert own < max(1.5 * plain, least)


def _head_memory(device: str, folder: Path) -> Dict[str, Any]:
    """Return the peak of the head's memory above its inputs, by what tells it: CUDA, or the tensors that are made."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    from ftdist.objective.chunked import token_logprobs

    count, vocabulary, hidden, chunk = 4096, 8192, 64, 256
    inputs = [torch.randn(*shape, device=device).requires_grad_() for shape in ((count, hidden), (vocabulary, hidden))]
    targets = torch.randint(vocabulary, (count,), device=device)
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            made = func(*args, **(kwargs or {}))
            largest = max([largest, *(t.numel() * t.element_size() for t in torch.utils._pytree.tree_leaves(made)
                                      if isinstance(t, torch.Tensor))])  # fmt: skip
            return made

    before = torch.cuda.memory_allocated() if device == "cuda" else 0
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with Watch():
        (-token_logprobs([(inputs[0], inputs[1])], None, targets, vocabulary, equal=True, chunk=chunk).sum()).backward()
    peak = torch.cuda.max_memory_allocated() - before if device == "cuda" else None
    return {"largest": largest, "peak": peak, "chunk": 4 * chunk * vocabulary, "whole": 4 * count * vocabulary}


def test_the_loss_head_never_holds_whole_logits(run: Any) -> None:
    found = run(_head_memory)
    assert found["largest"] <= found["chunk"]
    if found["peak"] is not None:  # a few tensors of a chunk, and the gradients
        assert found["peak"] < found["whole"] / 2


def _compiled(device: str, folder: Path) -> Dict[str, Any]:
    import torch

    from ftdist.model import compiled
    from ftdist.model.attention_plan import BY_DOCUMENT

    if device == "cpu":
        compiled.BACKEND = "eager"  # the layers are traced, but no C++ is compiled
    made: List[Any] = []
    plain = _in_a_row(device, torch.float32, BY_DOCUMENT)
    found = _in_a_row(device, torch.float32, BY_DOCUMENT, lambda model: made.append(compiled.compile_layers(model)))
    return {"off": _off(found, plain), "count": made[0].count, "layers": len(made[0].layers)}


def test_compiled_layers_give_the_same_gradients(run: Any) -> None:
    found = run(_compiled)
    assert found["layers"] == ARCH["num_hidden_layers"] and 0 < found["count"] <= 8
    assert found["off"] < 1e-5


def _kernels(device: str, folder: Path) -> Dict[str, Any]:
    import torch

    from ftdist.model.attention_plan import BY_DOCUMENT
    from ftdist.model.kernels import use_kernels

    if device == "cpu":
        interpret_triton()
    found: Dict[str, Any] = {}
    for dtype in (torch.float32, torch.bfloat16)[: 2 if device == "cuda" else 1]:  # numpy has no bf16
        plain, used = _in_a_row(device, dtype, BY_DOCUMENT), _in_a_row(device, dtype, BY_DOCUMENT, use_kernels)
        again = _in_a_row(device, dtype, BY_DOCUMENT)
        found[str(dtype)] = {"off": _off(used, plain), "same": torch.equal(used, plain), "plain": _off(again, plain)}
    return found


@pytest.mark.skipif(
    find_spec("liger_kernel") is None, reason="liger-kernel is not installed (pip install 'ftdist[liger]')"
)
def test_liger_gives_the_same_gradients_and_other_models_stay_plain(run: Any) -> None:
    """On a CPU, Triton interprets the kernels."""
    found = run(_kernels)
    assert found["torch.float32"]["off"] < 1e-5 and found.get("torch.bfloat16", {"off": 0})["off"] < 5e-2
    assert not any(one["same"] for one in found.values()), "the kernels did not run"
    assert all(one["plain"] < 1e-6 for one in found.values())


def _in_host_memory(device: str, folder: Path, mode: str) -> Dict[str, Any]:
    import torch

    from ftdist.config.schema import Recompute, TrainConfig
    from ftdist.model import host_copies
    from ftdist.model.attention_plan import BY_DOCUMENT
    from ftdist.model.recompute import set_recomputation

    pinned: List[bool] = []
    pack = host_copies.HostCopies.pack

    def packed(self: Any, tensor: Any) -> Any:
        copy = pack(self, tensor)
        if not isinstance(copy, torch.Tensor):
            pinned.append(copy.host.is_pinned() if device == "cuda" else copy.host.data_ptr() != tensor.data_ptr())
        return copy

    host_copies.HostCopies.pack = packed  # type: ignore[method-assign]
    settings = TrainConfig(gradient_checkpointing=Recompute[mode], offload_activations=True)
    kept = _in_a_row(device, torch.bfloat16, BY_DOCUMENT)

    def offload(model: Any) -> None:
        set_recomputation(model, settings, BY_DOCUMENT)

    found = _in_a_row(device, torch.bfloat16, BY_DOCUMENT, offload)
    return {"equal": torch.equal(found, kept), "copies": len(pinned), "pinned": all(pinned)}


@pytest.mark.parametrize("mode", ["full", "selective"])
def test_activations_in_pinned_host_memory_change_no_bit(run: Any, mode: str) -> None:
    found = run(_in_host_memory, mode)
    assert found["equal"] and found["copies"] and found["pinned"]
