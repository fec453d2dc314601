"""The cost of a run for its report: its operations by hand, and the price."""

from pathlib import Path

import numpy as np
import pytest

from ftdist.config.schema import RunConfig
from ftdist.data.loader import PreparedSet
from ftdist.plan.goodput import Attempt, Goodput
from ftdist.report import cost
from ftdist.report.cost import run_cost, squares_per_token
from ftdist.report.rows import cost_rows
from ftdist.run.identity import record_inputs
from ftdist.run.rundir import RunDir
from ftdist.run.timeline import STEPS
from tests.helpers.tiny import LLAMA, save_tiny_model
from tests.unit.data_tools import data_config

MATRICES = 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128) + 259 * 64
NORMS = 5 * 64


def _data(*lengths: int) -> PreparedSet:
    """Prepared data with these documents. The last one is in no row."""
    tokens, offsets = np.zeros(sum(lengths), np.int32), np.cumsum([0, *lengths])
    rows = np.arange(len(lengths) - 1)
    return PreparedSet(tokens, tokens.astype(np.uint8), offsets, rows, np.array([0, len(rows)]))


def _config(folder: Path, *overrides: str) -> RunConfig:
    return data_config(folder, *(f"model.config.{name}={value}" for name, value in LLAMA.items()), *overrides)


def test_documents_outside_of_rows_do_not_count() -> None:
    assert squares_per_token(_data(3, 5, 100)) == (9 + 25) / 8
    assert squares_per_token(_data(7)) == 0


@pytest.mark.parametrize("price", [None, 5.0])
def test_the_operations_and_the_price_of_a_run(
    tmp_path: Path, price: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost, "is_ready", lambda folder: True)
    monkeypatch.setattr(cost, "open_set", lambda folder, name: _data(3, 5, 100))
    config, goodput = (
        _config(tmp_path, "report.price_per_device_hour=2"),
        Goodput([Attempt(0, 0.0, {STEPS: 1800.0}, ranks=4)]),
    )
    found = run_cost(RunDir(tmp_path), config, goodput, 8000, price)
    assert found["flops"] == 8000 * (6 * MATRICES + 6 * 2 * 64 * 34 / 8)
    assert (found["device_hours"], found["price"]) == (2.0, 10.0 if price else 4.0)
    parameters = MATRICES + 259 * 64 + NORMS
    assert found["from_zero"]["parameters"] == parameters and found["from_zero"]["tokens"] == 20 * parameters
    assert found["from_zero"]["flops"] == 6 * parameters * 20 * parameters


def test_without_the_prepared_data_the_operations_are_not_known(tmp_path: Path) -> None:
    found = run_cost(RunDir(tmp_path), _config(tmp_path), Goodput(), 8000, None)
    assert found["flops"] is None and found["price"] is None and found["tokens"] == 8000


def test_without_the_files_of_the_model_the_rest_of_the_cost_is_known(tmp_path: Path) -> None:
    config = data_config(tmp_path)
    config.model.config, config.model.path = {}, str(tmp_path / "gone")
    found = run_cost(RunDir(tmp_path), config, Goodput([Attempt(0, 0.0, {STEPS: 1800.0}, ranks=4)]), 8000, 2.0)
    assert (found["tokens"], found["device_hours"], found["price"], found["flops"]) == (8000, 2.0, 4.0, None)
    assert cost_rows(found)[:3] == [["tokens", "8,000", "not known"], ["FLOPs", *["not known"] * 2],
                                    ["device-hours", "2", "not known"]]  # fmt: skip


def test_a_config_of_the_model_that_has_changed_gives_no_numbers(tmp_path: Path) -> None:
    config, model, run = data_config(tmp_path), save_tiny_model(tmp_path / "model"), RunDir(tmp_path)
    config.model.config, config.model.path = {}, str(model)
    record_inputs(run, config, None)
    assert run_cost(run, config, Goodput(), 8000, None)["from_zero"]["parameters"]
    changed = (model / "config.json").read_text().replace('"num_hidden_layers": 2', '"num_hidden_layers": 1')
    (model / "config.json").write_text(changed)
    assert run_cost(run, config, Goodput(), 8000, None)["from_zero"]["parameters"] is None
