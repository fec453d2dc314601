"""The sizes of DeepSpeed's communication and their memory, by hand."""

import pytest

from ftdist.config.schema import Precision
from ftdist.plan.communication import (
    ModelSizes,
    exchange_bytes,
    exchange_settings,
    sizes_of,
    with_sizes,
    without_sizes,
)

BF16, FP32 = Precision.bf16, Precision.fp32
SMOLLM2_135M = ModelSizes(134_515_008, 134_515_008, 3_540_096)
LLAMA_8B = ModelSizes(8_030_261_248, 8_030_261_248, 218_112_000)


@pytest.mark.parametrize(
    ("model", "bucket", "ahead"),
    [
        (SMOLLM2_135M, 8_407_188, 5_000_000),  # 134,515,008 / 16; a layer of 3.5 million is too small for a message
        (ModelSizes(1_235_814_400, 1_235_814_400, 60_821_504), 50_000_000, 50_000_000),  # Llama 3.2 1B
        (ModelSizes(494_032_768, 494_032_768, 14_912_384), 30_877_048, 14_912_384),  # Qwen2.5 0.5B
        (LLAMA_8B, 50_000_000, 50_000_000),
        (ModelSizes(8_072_204_288, 41_943_040, 219_422_720), 5_000_000, 50_000_000),  # its adapters of rank 16
        (ModelSizes(8_030_261_248, 2_000_000, 218_112_000), 2_000_000, 50_000_000),  # fewer trained than a message
        (ModelSizes(100_000, 100_000, 40_000), 100_000, 100_000),  # a model that is smaller than a message
        (ModelSizes(100_000, 0, 40_000), 1, 100_000),  # DeepSpeed refuses a bucket of 0
    ],
)
def test_sizes_follow_from_the_model(model: ModelSizes, bucket: int, ahead: int) -> None:
    assert sizes_of(model) == {"reduce_bucket_size": bucket, "stage3_prefetch_bucket_size": ahead}


def test_each_stage_has_the_settings_that_it_reads() -> None:
    assert exchange_settings(0, {}) == {}
    assert exchange_settings(1, {}) == exchange_settings(2, {}) == {"reduce_bucket_size": "auto", "overlap_comm": False}
    assert exchange_settings(3, {}) == {
        "reduce_bucket_size": "auto", "overlap_comm": True, "stage3_prefetch_bucket_size": "auto",
        "stage3_max_live_parameters": 10**9, "stage3_max_reuse_distance": 10**9,
        "stage3_param_persistence_threshold": 10**5,
    }  # fmt: skip


def test_values_of_the_user_win_under_each_of_their_names() -> None:
    given = {"reduce_bucket_size": 7, "prefetch_bucket_size": 8, "stage3_max_reuse_distance": 9, "overlap_comm": False}
    assert exchange_settings(3, given) == {
        "stage3_max_live_parameters": 10**9, "stage3_param_persistence_threshold": 10**5,
    }  # fmt: skip


def test_auto_is_replaced_by_the_sizes_and_nothing_else_changes() -> None:
    zero = {"stage": 3, "reduce_bucket_size": 7, "stage3_prefetch_bucket_size": "auto", "overlap_comm": True}
    settings = {"bf16": {"enabled": True}, "zero_optimization": zero}
    filled = {**zero, "stage3_prefetch_bucket_size": 5_000_000}
    assert with_sizes(settings, SMOLLM2_135M) == {"bf16": {"enabled": True}, "zero_optimization": filled}
    loading = {"stage": 3, "reduce_bucket_size": 7, "overlap_comm": True}
    assert without_sizes(settings) == {"bf16": {"enabled": True}, "zero_optimization": loading}


def test_the_memory_of_communication() -> None:
    def held(stage: int, model: ModelSizes, precision: Precision, **given: object) -> int:
        settings = {"zero_optimization": {"stage": stage, **exchange_settings(stage, given), **given}}
        return exchange_bytes(with_sizes(settings, model)["zero_optimization"], model, precision)

    assert held(0, LLAMA_8B, BF16) == 0
    assert held(1, LLAMA_8B, BF16) == held(2, LLAMA_8B, BF16) == 100_000_000
    assert held(1, LLAMA_8B, FP32) == 200_000_000
    assert held(2, LLAMA_8B, BF16, overlap_comm=True) == 200_000_000  # two buckets
    # The bucket, 50 million weights ahead, and 500 million from the forward to the backward pass, 2 bytes each.
    assert held(3, LLAMA_8B, BF16) == 1_200_000_000
    assert held(3, LLAMA_8B, BF16, stage3_max_reuse_distance=0) == 200_000_000
    # All weights stay gathered, so none is gathered ahead.
    assert held(3, SMOLLM2_135M, FP32) == 4 * (8_407_188 + 134_515_008)
