"""The trace of some steps, and its summary in words."""

import gzip
import json
from pathlib import Path
from typing import List

import pytest
import torch

from ftdist.train.profile import StepProfiler, kind_of


def _step() -> None:
    weight = torch.ones(256, 256, requires_grad=True)
    (weight @ weight).relu().sum().backward()


def test_the_named_steps_are_traced_and_summarized(tmp_path: Path) -> None:
    said: List[str] = []
    with StepProfiler("2-3", tmp_path / "profile", 0, said.append) as profiler:
        for number in range(1, 5):
            with profiler.step(number):
                _step()
            assert bool(said) is (number >= 3)
    [trace] = (tmp_path / "profile").iterdir()
    assert trace.name == "steps-2-3.rank0.json.gz"
    names = [event.get("name") for event in json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]]
    assert names.count("aten::relu") == 2, "two steps were traced"
    assert 3 <= len(said) <= 10 and str(trace) in said[-1]
    products = next(line for line in said if "matrix products" in line)
    assert "aten::mm" in products and " in 3 operations" in products  # one forward, two backward, in each step


def test_other_ranks_write_a_trace_and_say_nothing(tmp_path: Path) -> None:
    said: List[str] = []
    with StepProfiler("1-1", tmp_path, 3, said.append) as profiler, profiler.step(1):
        _step()
    assert [file.name for file in tmp_path.iterdir()] == ["steps-1-1.rank3.json.gz"] and not said


def test_a_run_that_begins_late_and_stops_early_writes_the_steps_that_it_ran(tmp_path: Path) -> None:
    said: List[str] = []
    with StepProfiler("2-9", tmp_path, 0, said.append) as profiler, profiler.step(5):
        _step()
    assert [file.name for file in tmp_path.iterdir()] == ["steps-5-5.rank0.json.gz"]
    assert any(" in 3 operations" in line for line in said), "the times are those of one step"
    with StepProfiler("7-9", tmp_path, 0, said.append) as profiler, profiler.step(5):
        _step()
    assert said[-1] == "debug.profile: no step from 7 to 9 was run, so there is no trace"


def test_without_the_setting_nothing_is_traced(tmp_path: Path) -> None:
    with StepProfiler(None, tmp_path / "profile", 0, print) as profiler, profiler.step(1):
        _step()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::mm", "matrix products"), ("ampere_bf16_s16816gemm_bf16_128x128", "matrix products"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"), ("ncclDevKernel_AllReduce", "collectives"),
        ("c10d::allreduce_", "collectives"), ("Memcpy HtoD (Pinned -> Device)", "copies"),
        ("aten::_log_softmax", "softmax and loss"), ("aten::embedding_dense_backward", "embeddings and indexing"),
        ("aten::_foreach_addcdiv_", "optimizer"), ("aten::silu", "elementwise and other"),
    ],
)  # fmt: skip
def test_operations_have_kinds(name: str, kind: str) -> None:
    assert kind_of(name) == kind
