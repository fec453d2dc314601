"""Memory of the model states, against numbers worked out by hand."""

import re
from pathlib import Path
from typing import Any

import pytest

from ftdist.config.optim import OptimizerKind, OptimizerSpec, optimizer_of
from ftdist.config.schema import Offload, Precision, RunConfig, ZeroConfig
from ftdist.config.zero import ModelState
from ftdist.plan.layout import Layout
from ftdist.plan.memory import (
    RankMemory,
    States,
    eager_attention_bytes,
    memory_of,
    numbers_saved,
    placement,
    rank_memory,
)
from tests.unit.compose_tools import composed

DOCS = Path(__file__).parents[3] / "docs"
STEP_PAGE, ADAPTERS_PAGE = DOCS / "step.md", DOCS / "adapters.md"
ADAMW = OptimizerSpec(("exp_avg", "exp_avg_sq"))
SMOLLM = 134_515_008
"""Parameters of SmolLM2-135M."""


def memory(
    stage: int, precision: Precision = Precision.bf16, ranks: int = 8, parameters: int = SMOLLM, **offload: Offload
) -> RankMemory:
    return rank_memory(
        parameters, parameters, precision, ZeroConfig(stage=stage, **offload), Layout.of_world(ranks), ADAMW
    )


def test_smollm2_135m_in_bf16_with_zero_2_on_8_ranks() -> None:
    """Weights 2 bytes whole; gradients 2 bytes and masters with two moments 4 + 4 + 4 bytes, an eighth of each."""
    found = memory(2)
    assert found.device == States(parameters=269_030_016, gradients=33_628_752, optimizer_states=201_772_512)
    assert found.device.total == 504_431_280 and found.host == States()


@pytest.mark.parametrize(
    ("stage", "precision", "expected"),
    [
        (0, Precision.bf16, (2000, 2000, 12000)),
        (1, Precision.bf16, (2000, 2000, 3000)),
        (2, Precision.bf16, (2000, 500, 3000)),
        (3, Precision.bf16, (500, 500, 3000)),
        (0, Precision.fp32, (4000, 4000, 8000)),  # the weights are the masters
        (1, Precision.fp32, (4000, 4000, 3000)),
        (2, Precision.fp32, (4000, 1000, 3000)),
        (3, Precision.fp32, (1000, 1000, 3000)),
    ],
)
def test_bytes_of_a_thousand_parameters_on_four_ranks(stage: int, precision: Precision, expected: tuple) -> None:
    assert memory(stage, precision, ranks=4, parameters=1000) == RankMemory(States(*expected), States())


@pytest.mark.parametrize(
    ("stage", "offload_param", "device", "host"),
    [
        (1, Offload.none, (2000, 2000, 0), (0, 1000, 3000)),  # whole gradients come together on the device
        (2, Offload.none, (2000, 0, 0), (0, 1000, 3000)),
        (3, Offload.none, (500, 0, 0), (0, 1000, 3000)),
        (3, Offload.cpu, (0, 0, 0), (500, 1000, 3000)),
    ],
)
def test_what_offload_moves_to_host_memory(stage: int, offload_param: Offload, device: tuple, host: tuple) -> None:
    """The optimizer on the host is given its part of the gradients in fp32: 4 bytes / 4 ranks."""
    found = memory(stage, ranks=4, parameters=1000, offload_optimizer=Offload.cpu, offload_param=offload_param)
    assert found == RankMemory(States(*device), States(*host))


def test_frozen_parameters_have_no_gradients_and_no_optimizer_states() -> None:
    found = rank_memory(1000, 100, Precision.bf16, ZeroConfig(stage=0), Layout(1, 1), ADAMW)
    assert found.device == States(parameters=2000, gradients=200, optimizer_states=1200)


def test_a_parameter_in_4_bits_takes_half_a_byte_and_scales_that_are_not_sharded() -> None:
    numbers = 256 * 64
    for stage, ranks in ((0, 1), (3, 4)):
        zero = ZeroConfig(stage=stage)
        found = rank_memory(numbers + 100, 0, Precision.bf16, zero, Layout(1, ranks), ADAMW, quantized=numbers)
        assert found.device.total == (200 + numbers / 2) / ranks + 256 + 4
    assert numbers_saved(numbers, Precision.bf16) * 2 == 2 * numbers - (numbers / 2 + 256 + 4)


def test_another_optimizer_takes_the_bytes_of_its_states() -> None:
    momentum = OptimizerSpec(("momentum_buffer",))
    found = rank_memory(1000, 1000, Precision.bf16, ZeroConfig(stage=1), Layout(1, 4), momentum)
    assert found.device == States(parameters=2000, gradients=2000, optimizer_states=2000)


@pytest.mark.parametrize(("kind", "pages"), [("adamw", 8), ("lion", 4), ("adamw_8bit", 2.1)])
def test_pages_are_host_memory_and_master_weights_are_not(kind: str, pages: float) -> None:
    config = RunConfig()
    config.optim.optimizer, config.optim.paged, config.zero.stage = OptimizerKind[kind], True, 1
    found = memory_of(config, 1000, Layout(1, 4))
    assert found.host == States(optimizer_states=pages * 250)
    assert found.device == States(parameters=2000, gradients=2000, optimizer_states=pytest.approx(1000))
    assert any("paged to host memory" in kept for _, kept, _ in placement(config))


def test_what_each_stage_shards() -> None:
    sharded = {stage: {kind.name for kind in ModelState if kind.is_sharded(stage)} for stage in range(4)}
    assert sharded == {
        0: set(),
        1: {"optimizer_states"},
        2: {"optimizer_states", "gradients"},
        3: {"optimizer_states", "gradients", "parameters"},
    }


def test_the_table_of_the_documentation_is_what_is_computed() -> None:
    """docs/step.md, "What ZeRO shards": bytes a parameter, such as 4 + 12/R, and gigabytes for 8 billion on 8 ranks."""
    table = re.findall(r"^\| ([0-3]) \| .* \| ([\d/R +]+) \| (\d+) GB \|$", STEP_PAGE.read_text("utf-8"), re.M)
    assert [int(stage) for stage, *_ in table] == [0, 1, 2, 3]
    for stage, formula, gigabytes in table:
        for ranks in (1, 2, 8, 32):
            terms = [term.split("/") for term in formula.split(" + ")]
            by_hand = sum(int(term[0]) / (ranks if len(term) == 2 else 1) for term in terms)
            assert memory(int(stage), ranks=ranks, parameters=1).device.total == pytest.approx(by_hand)
        assert round(memory(int(stage), parameters=8 * 10**9).device.total / 1e9) == int(gigabytes)


def test_the_memory_of_a_config_is_that_of_its_settings() -> None:
    config = RunConfig()
    config.train.precision, config.zero.stage = Precision.bf16, 2
    assert memory_of(config, SMOLLM, Layout(2, 4)) == memory(2)


LLAMA_8B, LLAMA_70B = (8_030_261_248, 32, 4096, 14336), (70_553_706_496, 80, 8192, 28672)
"""Llama 3.1: parameters, layers, width, width of the MLP. Keys and values are 1024 wide."""


@pytest.mark.parametrize(
    ("experiment", "model", "gpu"),
    [("llama31_8b_lora", LLAMA_8B, 24), ("llama31_8b_qlora", LLAMA_8B, 24), ("llama31_70b_lora", LLAMA_70B, 80)],
)
def test_the_adapter_experiments_fit_as_the_documentation_says(experiment: str, model: tuple, gpu: int) -> None:
    """docs/adapters.md, "Memory". At least a quarter of the GPU is left for activations."""
    config, (whole, layers, width, mlp) = composed(f"experiment={experiment}"), model
    sides = [(width, width), (width, 1024), (width, 1024), (width, width), *[(width, mlp)] * 3]
    adapters = layers * config.method.r * sum(one + other for one, other in sides)
    packed = layers * sum(one * other for one, other in sides) if experiment.endswith("qlora") else 0
    layout = Layout.of_world(config.launch.nproc_per_node)
    found = memory_of(config, whole + adapters, layout, adapters, packed).device.total / 1e9
    said = re.search(rf"^\| `experiment={experiment}`.* ([\d.]+) GB of states", ADAPTERS_PAGE.read_text("utf-8"), re.M)
    assert f"{found:.2g}" == said.group(1) and found < 0.75 * gpu


@pytest.mark.parametrize(
    ("stage", "whole"), [(0, 3), (1, 2), (2, 1), (3, 0)], ids=lambda value: str(value)
)  # fmt: skip
def test_the_placement_says_what_is_whole_on_every_rank(stage: int, whole: int) -> None:
    config = RunConfig()
    config.zero.stage = stage
    rows = placement(config)
    assert sum(where == "whole on every rank" for _, _, where in rows) == whole
    assert sum(where == "sharded over ranks" for _, _, where in rows) == 3 - whole


def test_the_placement_names_types_and_offload() -> None:
    config = RunConfig()
    config.zero = ZeroConfig(stage=3, offload_optimizer=Offload.cpu, offload_param=Offload.cpu)
    assert placement(config) == [
        ("weights, activations", "bf16", "host memory, sharded over ranks"),
        ("gradients", "bf16", "sharded over ranks"),
        ("optimizer states", "fp32, with master weights", "host memory, sharded over ranks"),
        ("loss", "fp32", "over the tokens of all ranks"),
    ]
    config.optim.optimizer = OptimizerKind.adamw_8bit
    assert ("optimizer states", "8 bits, with fp32 master weights", "host memory, sharded over ranks") in placement(
        config
    )
    config.optim.optimizer = OptimizerKind.adamw
    config.train.precision, config.zero = Precision.fp32, ZeroConfig(stage=0)
    assert [row[:2] for row in placement(config)[:3]] == [
        ("weights, activations", "fp32"), ("gradients", "fp32"), ("optimizer states", "fp32"),
    ]  # fmt: skip


@pytest.mark.parametrize("kind", [OptimizerKind.adamw, OptimizerKind.adamw_8bit])
@pytest.mark.parametrize("precision", Precision)
@pytest.mark.parametrize("stage", range(4))
def test_the_placement_names_master_weights_where_they_take_memory(stage: int, precision: Any, kind: Any) -> None:
    config = RunConfig()
    config.zero.stage, config.train.precision, config.optim.optimizer = stage, precision, kind
    (kept,) = (type_ for what, type_, _ in placement(config) if what == "optimizer states")
    bytes_each = memory_of(config, 1000, Layout.of_world(1)).device.optimizer_states / 1000
    assert ("master weights" in kept) == (bytes_each >= optimizer_of(config.optim).bytes_per_parameter + 4)


def test_the_scores_of_eager_attention_grow_with_the_square_of_the_row() -> None:
    """32 heads × 4096² scores: 4 bytes in fp32, and 2 more for the copy in bf16. All 28 layers, or one of them."""
    assert eager_attention_bytes(4096, 32, 28, Precision.fp32, recompute=False) == 28 * 2 * 2**30
    assert eager_attention_bytes(4096, 32, 28, Precision.bf16, recompute=True) == 3 * 2**30
    assert eager_attention_bytes(2048, 32, 28, Precision.bf16, recompute=True, rows=4) == 3 * 2**30
