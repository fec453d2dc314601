"""Forty types of causal language models: exact or refused, as docs/models.md says. ``make models`` checks all types."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier
from typing import Dict

import pytest
import transformers

from tests.helpers.ranks import fork
from tests.models import alone, suite
from tests.models.alone import Outcome
from tests.models.suite import CI, CI_RUNS


@pytest.fixture(scope="module")
def found() -> Dict[str, Outcome]:
    return suite.run(CI, CI_RUNS, jobs=2)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("model_type", CI)
def test_a_type_is_exact_in_the_way_that_the_page_says(model_type: str, found: Dict[str, Outcome]) -> None:
    recorded = suite.read_outcomes()[model_type]
    if model_type not in CI_RUNS:
        recorded = replace(recorded, zero3="", export="")
    assert found[model_type] == recorded, "run make models, and look at the changes of docs/models.md"


def test_the_page_is_fresh_and_lists_every_type() -> None:
    outcomes = suite.read_outcomes()
    assert list(outcomes) == suite.all_types()
    assert suite.PAGE.read_text(encoding="utf-8") == suite.page(outcomes, transformers.__version__)


def test_nothing_is_silently_wrong() -> None:
    wrong = {name: outcome.note for name, outcome in suite.read_outcomes().items() if outcome.result == "wrong"}
    assert not wrong, json.dumps(wrong, indent=1)


def test_most_types_can_be_trained_sharded_and_exported() -> None:
    outcomes = suite.read_outcomes().values()
    assert sum(outcome.zero3 == "exact" and outcome.export == "exact" for outcome in outcomes) >= 150


def test_forked_processes_can_compute_in_several_threads() -> None:
    """transformers loads weights in threads."""
    import torch

    threads, numbers = torch.get_num_threads(), torch.ones(100_000)  # enough for several threads
    torch.set_num_threads(threads)  # makes the pool

    def compute() -> None:
        gate = Barrier(8)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: (gate.wait(), numbers.bfloat16()), range(8)))

    for _ in range(40):
        if pid := fork():
            assert os.waitpid(pid, 0)[1] == 0
            continue
        failed = 1
        try:
            compute()
            failed = 0
        finally:
            os._exit(failed)


def test_a_deviation_is_found() -> None:
    import torch

    gradient = {"weight": torch.tensor([3.0, 4.0])}
    assert alone.deviation((1.0, gradient), (1.0, gradient), ["weight"]) == ""
    assert "loss off" in alone.deviation((1.0 + 2e-5, gradient), (1.0, gradient), ["weight"])
    changed = {"weight": torch.tensor([3.0, 4.01])}
    assert "gradient of weight by 0.002" in alone.deviation((1.0, changed), (1.0, gradient), ["weight"])
    assert "only one of the two" in alone.deviation((1.0, {}), (1.0, gradient), ["weight"])
