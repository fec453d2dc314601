"""The operations of a step by hand, and the phases of a step."""

import time
from types import SimpleNamespace
from typing import Any, Dict

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from ftdist.config.schema import RunConfig
from ftdist.data.loader import PreparedSet
from ftdist.engine.size import _attention_width, model_size
from ftdist.plan.cost import describe_estimate
from ftdist.plan.flops import ModelSize, step_flops
from ftdist.train.phases import PhaseClock
from ftdist.train.throughput import Throughput, matrix_rate

CPU = torch.device("cpu")


def _model(model_type: str, **fields: Any) -> Any:
    arch = AutoConfig.for_model(
        model_type, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=100,
        num_key_value_heads=2, pad_token_id=0, **fields,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(arch)


ATTENTION = 2 * 32 * 32 + 2 * 32 * 16
MLP = 3 * 32 * 48


@pytest.mark.parametrize("tied", [True, False])
def test_embeddings_count_only_as_the_head(tied: bool) -> None:
    size = model_size(_model("llama", tie_word_embeddings=tied))
    assert size == ModelSize(trained=2 * (ATTENTION + MLP) + 100 * 32, frozen=0, attention=2 * 32)


def test_frozen_weights_are_apart() -> None:
    model = _model("llama", tie_word_embeddings=False)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("layers.1" in name)
    assert model_size(model) == ModelSize(ATTENTION + MLP, ATTENTION + MLP + 100 * 32, 2 * 32)


def test_of_experts_those_that_a_token_uses_count() -> None:
    size = model_size(_model("mixtral", num_local_experts=8, num_experts_per_tok=2, tie_word_embeddings=False))
    assert size.trained == 2 * (ATTENTION + 8 * 32 + 2 * MLP) + 100 * 32  # the router is a matrix, too


def test_without_the_number_of_experts_of_a_token_nothing_is_claimed() -> None:
    model = _model("mixtral", num_local_experts=8, num_experts_per_tok=2)
    model.config.num_experts_per_tok = 0
    assert model_size(model) is None


@pytest.mark.parametrize(
    ("fields", "width"),
    [
        ({}, 4 * 32),
        ({"head_dim": 16}, 4 * 64),
        ({"layer_types": ["full_attention", "linear_attention", "conv", "sliding_attention"]}, 2 * 32),
        ({"layers_block_type": ["mamba", "hybrid", "mlp", "attention"]}, 2 * 32),
        ({"per_layer_config": [SimpleNamespace(num_attention_heads=2, head_dim=n) for n in (1, 2, 3, 4)]}, 2 * 10),
        ({"num_attention_heads": 0}, 0),
        ({"num_attention_heads": [2, 4, 4, 4]}, None),
        ({"num_hidden_layers": 0}, None),
    ],
)
def test_the_width_of_attention_is_that_of_the_layers_with_attention(fields: Dict[str, Any], width: Any) -> None:
    text = SimpleNamespace(**{"num_hidden_layers": 4, "num_attention_heads": 4, "hidden_size": 32} | fields)
    assert _attention_width(SimpleNamespace(get_text_config=lambda: text)) == width


def test_the_operations_of_a_step() -> None:
    """Two documents of 3 and 5 tokens: 8 tokens, 9 + 25 pairs of tokens."""
    assert step_flops(ModelSize(trained=10, frozen=100, attention=7), tokens=8, squares=34) == 8 * 460 + 6 * 7 * 34


def test_smollm2_is_the_example_of_the_docs() -> None:
    size = ModelSize(trained=134_479_872, frozen=0, attention=30 * 576)
    assert step_flops(size, 1, 512) == 859_963_392


def test_the_estimate_counts_the_tokens_of_all_steps_and_ranks() -> None:
    model, mesh = _model("llama"), SimpleNamespace(device=torch.device("cpu"), sum=lambda values: values)
    throughput = Throughput(model, mesh, torch.float32)  # type: ignore[arg-type]
    offsets, documents = np.array([0, 10, 14]), np.array([0, 1, 1])  # rows of 14 and 4 tokens
    data = PreparedSet(np.zeros(14), np.zeros(14), offsets, documents, np.array([0, 2, 3]))
    config = RunConfig()
    config.batch.global_batch_size, config.report.price_per_device_hour = 4, 3.0
    line = throughput.estimate(config, data, steps=5, devices=2)
    size = model_size(model)
    assert size is not None
    flops = step_flops(size, 10 * (10 + 4 + 4), 10 * (10**2 + 4**2 + 4**2))  # 20 rows: each of the two rows ten times
    assert line == describe_estimate(5, flops, throughput._rate, 2, 3.0)
    assert throughput.estimate(config, data, steps=0, devices=2) == ""


def test_the_rate_of_a_matrix_product_draws_no_random_numbers() -> None:
    state = torch.random.get_rng_state()
    assert matrix_rate(CPU, torch.float32) > 1e6
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_times_of_a_phase_are_added_up_in_each_step() -> None:
    clock = PhaseClock(CPU)
    for _ in range(2):
        with clock.phase("forward"):
            time.sleep(0.01)
    with clock.phase("update"):
        pass
    first = clock.end_step()
    assert first["perf/forward_s"] >= 0.02 and 0 <= first["perf/update_s"] < first["perf/forward_s"]
    assert clock.end_step() == {}


@pytest.mark.gpu
def test_on_a_gpu_the_times_are_those_of_the_device_a_step_later() -> None:
    clock, work = PhaseClock(torch.device("cuda")), torch.ones(4096, 4096, device="cuda")
    for _ in range(2):
        with clock.phase("forward"):
            for _ in range(20):
                work @ work
        with clock.phase("data", on_host=True):
            pass
        found = clock.end_step()
        torch.cuda.synchronize()
    assert found["perf/forward_s"] > found["perf/data_s"]
