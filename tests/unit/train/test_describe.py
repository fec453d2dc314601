"""What the log says about the attention of a run."""

import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ftdist.config.schema import Recompute, RunConfig
from ftdist.model.attention_plan import BY_DOCUMENT, PLAIN, AttentionPlan, Layout
from ftdist.model.compiled import Compiled
from ftdist.model.exactness import Choice
from ftdist.model.isolation import Isolation
from ftdist.objective.chunked import LogitTransform
from ftdist.objective.head import Head
from ftdist.train.describe import (
    describe_activations,
    describe_attention,
    describe_compiled,
    describe_experts,
    describe_gathered,
    describe_head,
)


def _lines(plan: AttentionPlan, recompute: bool = True, **choice: Any) -> list[str]:
    config = RunConfig()
    config.data.max_seq_len, config.batch.micro_batch_size = 4096, 2
    config.train.gradient_checkpointing = Recompute.full if recompute else Recompute.none
    text = SimpleNamespace(num_attention_heads=32, num_hidden_layers=28)
    arch = SimpleNamespace(get_text_config=lambda: text)
    return describe_attention(config, arch, Choice(plan, **choice), Isolation(0.0), one_document=False)


def test_a_fast_plan_is_one_line() -> None:
    [line] = _lines(BY_DOCUMENT)
    assert line.startswith(
        "attention: documents; changing one document changes the logits of the others by 0, changing"
    )


def test_a_slower_plan_says_why_and_what_eager_attention_costs() -> None:
    plan = AttentionPlan(PLAIN.backend, "eager", Layout.row)
    _, why, memory = _lines(plan, rejected=["documents: this model's attention uses 'softcap'"])
    assert why == "           not documents: this model's attention uses 'softcap'"
    assert "keeps 12.0 GiB of scores for a row of 8,192 tokens" in memory  # 32 heads × 8192² × 6 bytes


@pytest.mark.parametrize(("recompute", "size"), [(True, "6.0 GiB"), (False, "168.0 GiB")])
def test_rows_of_their_own_cost_the_square_of_each_document(recompute: bool, size: str) -> None:
    [_, memory] = _lines(PLAIN, recompute)
    assert f"keeps {size} of scores if 2 documents have 4,096 tokens" in memory
    assert ("train.gradient_checkpointing=full" in memory) is not recompute


def test_a_model_without_a_stand_in_says_so() -> None:
    plan = replace(BY_DOCUMENT, cached=False)
    _, unproven, cache = _lines(plan, unproven="no stand-in of the model can be built")
    assert unproven.strip().startswith("no stand-in")
    assert cache.endswith("slower: it is not known whether its cache works")


@pytest.mark.parametrize(
    ("arch", "accum", "balance", "line"),
    [
        ({"num_local_experts": 4, "router_aux_loss_coef": 0.02}, 1, 0.0, "no loss .*=0.02 adds one"),
        ({"n_routed_experts": 4}, 1, 0.0, "transformers has none for moe"),
        ({"num_experts": 4}, 1, 0.5, "experts: .*, times 0.5, is added to the loss$"),
        ({"num_experts": 4}, 3, 0.5, "runs its 3 micro-batches once more .* a quarter more time"),
    ],
)
def test_how_the_load_of_experts_is_balanced(arch: dict[str, Any], accum: int, balance: float, line: str) -> None:
    config = RunConfig()
    config.batch.grad_accum_steps = accum
    text = SimpleNamespace(**arch)
    model = SimpleNamespace(model_type="moe", get_text_config=lambda: text)
    [found] = describe_experts(config, model, balance)
    assert re.search(line, found), found
    assert describe_experts(config, model, balance, counted=False) == [
        found, "         the tokens of each expert of moe cannot be counted"
    ]  # fmt: skip
    text = SimpleNamespace()
    assert describe_experts(config, SimpleNamespace(get_text_config=lambda: text), 0.0) == []


@pytest.mark.parametrize(
    ("stage", "trained", "line"),
    [
        (3, True, "one layer at once: 6.0 GiB, 18.0 GiB with their gradients; zero.expert_groups divides them"),
        (3, False, "one layer at once: 6.0 GiB; zero.expert_groups divides them"),
        (2, True, ""),
    ],
)
def test_what_zero3_gathers_for_the_experts_of_one_layer(stage: int, trained: bool, line: str) -> None:
    config, model = RunConfig(), torch.nn.Module()
    config.zero.stage = stage
    with torch.device("meta"):
        for number, experts in enumerate((8, 16)):
            model.add_module(f"layer{number}", torch.nn.Module())
            for name, shape in (("gate_up_proj", (experts, 8192, 16384)), ("down_proj", (experts, 4096, 16384))):
                weight = torch.nn.Parameter(torch.empty(shape), requires_grad=trained)
                model.get_submodule(f"layer{number}").register_parameter(name, weight)
    assert describe_gathered(config, model) == ([f"         ZeRO-3 gathers those of {line}"] if line else [])
    assert describe_gathered(config, torch.nn.Linear(3, 3)) == []
    config.zero.expert_groups = 2  # the modules are the groups then
    assert all("of one group of a layer at a time: 6.0 GiB" in found for found in describe_gathered(config, model))


def test_sampling_without_a_cache_is_said_once() -> None:
    [_, line] = _lines(replace(BY_DOCUMENT, cached=False))
    assert line.strip().startswith("answers are sampled without a cache") and "gives other tokens" in line


def test_heads_that_differ_by_layer_are_not_counted() -> None:
    class Text:
        @property
        def num_attention_heads(self) -> int:
            raise RuntimeError("num_attention_heads is a per-layer attribute")

    arch = SimpleNamespace(get_text_config=Text)
    [_, memory] = describe_attention(RunConfig(), arch, Choice(PLAIN), Isolation(0.0), one_document=False)
    assert memory.strip() == "the memory of eager attention grows with the square of the row length"


LLAMA_8B = {"hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": None,
            "intermediate_size": 14336, "num_hidden_layers": 32}  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "plan", "line"),
    [
        ({"gradient_checkpointing": Recompute.none}, BY_DOCUMENT, "32 layers keep about 51.1 GiB for 8,192 tokens"),
        ({}, BY_DOCUMENT, "keep their inputs. For 8,192 tokens all layers keep about 2.0 GiB, and .* 1.6 GiB more"),
        ({"gradient_checkpointing": Recompute.selective}, BY_DOCUMENT, "outputs of attention.* about 4.1 GiB, and"),
        ({"gradient_checkpointing": Recompute.selective}, PLAIN, "whole layers are recomputed$"),
        ({"recompute_every": 2}, BY_DOCUMENT, r"recomputed layers \(one in 2\).* about 26.6 GiB, and"),
        ({"offload_activations": True}, BY_DOCUMENT, "about 128.0 MiB and 2.0 GiB of host memory, and"),
    ],
)  # fmt: skip
def test_the_memory_of_activations_is_said(settings: dict[str, Any], plan: AttentionPlan, line: str) -> None:
    config = RunConfig()
    config.train = replace(config.train, **settings)
    config.data.max_seq_len = 8192
    text = SimpleNamespace(**LLAMA_8B)
    lines = describe_activations(config, SimpleNamespace(get_text_config=lambda: text), plan)
    assert re.search(line, lines[0]) and len(lines) == 1 + ("whole layers" in line)


def test_the_memory_of_activations_of_a_mixture_of_experts_is_not_guessed() -> None:
    text = SimpleNamespace(num_experts=4, **LLAMA_8B)
    assert describe_activations(RunConfig(), SimpleNamespace(get_text_config=lambda: text), BY_DOCUMENT) == []


def test_compiled_layers_are_counted_and_the_others_have_a_reason() -> None:
    compiled = Compiled()
    compiled.layers, compiled.left_out = [torch.nn.Identity()] * 3, {"its weights are quantized": 2}
    assert describe_compiled(compiled) == [
        "compiled: 3 layers, on first use in training", "          not 2 layers: its weights are quantized",
    ]  # fmt: skip


def test_the_memory_of_the_head_is_said() -> None:
    linear = torch.nn.Linear(576, 49152, bias=False)
    config, head = RunConfig(), Head(linear, LogitTransform())
    config.data.max_seq_len, config.batch.micro_batch_size = 1024, 1
    [line] = describe_head(config, head, 49152, "")
    assert line == ("loss: the head computes 512 tokens at a time and needs up to 511.2 MiB, with the gradient of its "
                    "weight in fp32")  # fmt: skip
    linear.requires_grad_(False)
    [line] = describe_head(config, head, 49152, "")
    assert line.endswith("up to 241.2 MiB")
    assert describe_head(config, None, 49152, "") == []
    assert "because of the model: it is odd" in describe_head(config, None, 49152, "it is odd")[0]
