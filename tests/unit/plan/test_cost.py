"""What a run cost: arithmetic by hand, and pretraining by the name of the model."""

from pathlib import Path

import pytest

from ftdist.plan.cost import cost_of, describe_estimate
from ftdist.plan.goodput import LOST, Attempt, Goodput
from ftdist.plan.pretraining import Pretraining, pretraining_of
from ftdist.run.timeline import LOADING, QUEUE, STEPS
from tests.unit.data_tools import data_config

FIRST = Attempt(0, 0.0, {QUEUE: 900.0, LOADING: 100.0, STEPS: 1000.0, LOST: 700.0}, ranks=2)
SECOND = Attempt(1, 9000.0, {QUEUE: 50.0, LOADING: 200.0, STEPS: 1600.0}, ranks=4)
BROKEN = Attempt(2, 12000.0, {LOADING: 360.0})


def test_every_held_device_is_paid_for_and_the_queue_is_free() -> None:
    cost = cost_of(Goodput([FIRST, SECOND, BROKEN]), 10**6, 5.2e15, 3.0, 10**8, Pretraining(2e9, ""))
    held = 2 * 1800 + 4 * 1800 + 2 * 360
    found = cost.as_dict()
    assert found["device_hours"] == pytest.approx(held / 3600) and found["price"] == pytest.approx(3 * held / 3600)
    assert found["devices"] == pytest.approx(held / 3960)
    assert found["flops_per_s"] == 5.2e15 / 2600 == 2e12, "only steps that count"
    zero = found["from_zero"]
    assert zero["flops"] == 6 * 1e8 * 2e9 and zero["share"] == pytest.approx(5.2e15 / 1.2e18)
    assert zero["seconds"] == pytest.approx(1.2e18 / 2e12)
    assert zero["device_hours"] == pytest.approx(6e5 / 3600 * held / 3960)
    assert zero["price"] == pytest.approx(3 * zero["device_hours"])


def test_what_is_not_known_is_not_invented() -> None:
    found = cost_of(Goodput(), 5, None, None, 10, Pretraining(200, "")).as_dict()
    assert [found[key] for key in ("flops", "flops_per_s", "price")] == [None] * 3
    assert [found["from_zero"][key] for key in ("seconds", "device_hours", "price", "share")] == [None] * 4


def test_the_estimate_before_a_run() -> None:
    line = describe_estimate(1000, flops=7.2e15, rate=1e12, devices=2, price=3.0)  # two hours on two devices
    assert "1,000 steps need 7.2e+15 operations" in line and "(1e+12 a second on 2 devices)" in line
    assert "take 2:00:00, or 4 device-hours, and cost 12. " in line
    one = describe_estimate(1, 7.2e15, 1e12, 1, None)
    assert "1 step needs 7.2e+15" in one and "on one device) it takes 2:00:00, or 2 device-hours. " in one


@pytest.mark.parametrize(
    ("setting", "tokens"),
    [
        ("model.hub=HuggingFaceTB/SmolLM2-135M-Instruct", 2e12), ("model.builtin=smollm2-135m-instruct", 2e12),
        ("model.hub=meta-llama/Llama-3.1-8B-Instruct", 15e12), ("model.path=/models/Qwen3-30B-A3B", 36e12),
        ("model.hub=google/gemma-3-4b-it", 4e12), ("model.path=/models/SmolLM2-360M.gguf", 4e12),
        ("model.hub=me/Qwen2.5-7B-my-own", 20 * 7), ("model.hub=Qwen/Qwen2.5-Coder-7B", 20 * 7),
        ("model.path=/models/mine", 20 * 7),
    ],
)  # fmt: skip
def test_pretraining_is_known_by_the_name_of_the_model(setting: str, tokens: float, tmp_path: Path) -> None:
    found = pretraining_of(data_config(tmp_path, setting), parameters=7)
    assert found.tokens == tokens and bool(found.source) == (tokens > 1e9)
