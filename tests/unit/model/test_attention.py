"""Attention backends and the proof of isolation, on small random models of many families."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from ftdist.base.errors import ConfigError
from ftdist.config.schema import Attention, ModelConfig, RunConfig
from ftdist.model.attention import documents_attention
from ftdist.model.attention_plan import candidates
from ftdist.model.forward import set_plan
from ftdist.model.isolation import measure_isolation, prove_isolation
from ftdist.model.plan_choice import choose_plan
from tests.helpers.families import TINY

CPU = torch.device("cpu")
FAMILIES = {
    "llama": {},
    "qwen3": {"head_dim": 8},
    "mistral": {"sliding_window": 4},
    "gemma2": {"head_dim": 8, "sliding_window": 4},
    "gemma3_text": {"head_dim": 8, "sliding_window": 4},
    "phi3": {},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "gpt_neox": {},
    "olmo2": {},
    "mixtral": {"num_local_experts": 4},
}


def _model(family: str, backend: Attention = Attention.auto, dtype: torch.dtype = torch.float32, **more: Any) -> Any:
    arch = AutoConfig.for_model(family, **{**TINY, **FAMILIES.get(family, {}), **more})
    plans = candidates(backend, arch, CPU, dtype)
    plan = next(p for p in plans if family != "gemma2" or p.implementation == "eager")  # it has no other attention
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(arch, dtype=dtype, attn_implementation=plan.implementation)
    model.config.use_cache = False
    set_plan(model, plan)
    return model, plan


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_documents_in_a_row_do_not_see_each_other(family: str, dtype: torch.dtype) -> None:
    model, plan = _model(family, dtype=dtype)
    proof = prove_isolation(model, TINY["vocab_size"], CPU, dtype, plan.describe())
    assert proof.crossing == 0.0 or (family == "mixtral" and proof.crossing < 1e-6)
    assert proof.looking_ahead == 0.0 or (family == "mixtral" and proof.looking_ahead < 1e-6)


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3_text"])
def test_the_documents_backend_gives_the_same_logits_as_the_mask_backend(family: str) -> None:
    """Same weights, one row of three documents: the logits are equal up to rounding."""
    row = torch.randint(TINY["vocab_size"], (1, 21), generator=torch.Generator().manual_seed(3))
    positions = torch.cat([torch.arange(n) for n in (7, 9, 5)])[None]
    limits = torch.tensor([0, 7, 16, 21], dtype=torch.int32)
    by_mask, _ = _model(family, Attention.mask)
    by_document, _ = _model(family, Attention.documents)
    expected = by_mask(input_ids=row, position_ids=positions, use_cache=False).logits
    measured = by_document(input_ids=row, position_ids=positions, use_cache=False, cu_seq_lens_q=limits).logits
    assert torch.allclose(measured, expected, atol=1e-5)


def _crossing_attention(module: Any, query: Any, key: Any, value: Any, mask: Any, **kwargs: Any) -> Any:
    kwargs.pop("cu_seq_lens_q", None)
    return sdpa_attention_forward(module, query, key, value, None, **kwargs)


def test_a_backend_that_does_not_separate_documents_is_refused() -> None:
    AttentionInterface.register("crossing", _crossing_attention)
    model, _ = _model("llama")
    model.set_attn_implementation("crossing")
    assert measure_isolation(model, TINY["vocab_size"], CPU).crossing > 0.01
    with pytest.raises(ConfigError, match="does not isolate") as caught:
        prove_isolation(model, TINY["vocab_size"], CPU, torch.float32, "crossing")
    assert "data.packing=false batch.micro_batch_size=1" in caught.value.fix
    proof = prove_isolation(model, TINY["vocab_size"], CPU, torch.float32, "crossing", one_document=True)
    assert proof.looking_ahead == 0.0, "a row with one document has no other document to see"


@pytest.mark.parametrize("one_document", [False, True], ids=["packed", "one document"])
@pytest.mark.parametrize(("family", "more"), [("bert", {"is_decoder": False}), ("llama", {})], ids=["bert", "llama"])
def test_a_model_that_sees_later_tokens_is_refused(family: str, more: dict[str, Any], one_document: bool) -> None:
    model, _ = _model(family, Attention.mask, **more)
    if family == "llama":
        AttentionInterface.register("ahead", _attention_without_causal_mask)
        model.set_attn_implementation("ahead")
    assert measure_isolation(model, TINY["vocab_size"], CPU, one_document).looking_ahead > 1e-5
    with pytest.raises(ConfigError, match=f"tokens of {family} can see later tokens"):
        prove_isolation(model, TINY["vocab_size"], CPU, torch.float32, "mask", one_document)


def _attention_without_causal_mask(module: Any, query: Any, key: Any, value: Any, mask: Any, **kwargs: Any) -> Any:
    """Attention within each document like that of a kernel without its causal flag."""
    parts = [slice(a, b) for a, b in pairwise(kwargs["cu_seq_lens_q"].tolist())]
    groups = query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
    rows = [F.scaled_dot_product_attention(query[:, :, p], key[:, :, p], value[:, :, p]) for p in parts]
    return torch.cat(rows, dim=2).transpose(1, 2), None


def test_a_model_whose_positions_do_not_restart_is_refused() -> None:
    model, _ = _model("gpt2")
    forward = model.forward
    model.forward = lambda **kw: forward(**{**kw, "position_ids": torch.arange(kw["input_ids"].shape[1])[None]})
    with pytest.raises(ConfigError, match="between a row with other documents and the document alone"):
        prove_isolation(model, TINY["vocab_size"], CPU, torch.float32, "documents")


def test_the_sliding_window_is_applied_within_a_document() -> None:
    q, k, v = (torch.randn(1, 2, 10, 8, generator=torch.Generator().manual_seed(i)) for i in range(3))
    whole, _ = documents_attention(torch.nn.Module(), q, k, v, None, sliding_window=3)
    last, _ = documents_attention(torch.nn.Module(), q[:, :, -1:], k[:, :, -3:], v[:, :, -3:], None)
    assert torch.allclose(whole[:, -1:], last, atol=1e-6)


def test_unsupported_changes_of_attention_scores_are_refused() -> None:
    q = torch.zeros(1, 2, 4, 8)
    with pytest.raises(ConfigError, match=r"softcap[\s\S]*model.attention=auto"):
        documents_attention(torch.nn.Module(), q, q, q, None, softcap=30.0)


@pytest.mark.parametrize("wanted", [Attention.varlen, Attention.flex])
def test_backends_for_cuda_are_refused_on_cpu(wanted: Attention) -> None:
    with pytest.raises(ConfigError, match=r"on cpu[\s\S]*model.attention=documents"):
        candidates(wanted, AutoConfig.for_model("llama", **TINY), CPU, torch.bfloat16)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", [Attention.varlen, Attention.documents, Attention.flex, Attention.mask])
def test_documents_in_a_row_do_not_see_each_other_on_a_gpu(backend: Attention, tmp_path: Path) -> None:
    cuda = torch.device("cuda")
    arch = AutoConfig.for_model("llama", **{**TINY, "hidden_size": 256, "head_dim": 64})
    config = RunConfig(model=ModelConfig(attention=backend), cache_dir=str(tmp_path))
    plan = choose_plan(config, arch, cuda, torch.bfloat16).plan
    name = plan.implementation
    model = AutoModelForCausalLM.from_config(arch, dtype=torch.bfloat16, attn_implementation=name).to(cuda)
    model.config.use_cache = False
    set_plan(model, plan)
    assert prove_isolation(model, TINY["vocab_size"], cuda, torch.bfloat16, backend.name).crossing == 0.0
