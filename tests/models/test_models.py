"""Forty types of causal language models: exact, and as docs/models.md says. ``make models`` checks all types."""

import json
from typing import Dict

import pytest
import transformers

from tests.models import suite
from tests.models.suite import CI, Outcome


@pytest.fixture(scope="module")
def found() -> Dict[str, Outcome]:
    return suite.run(CI, jobs=2)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("model_type", CI)
def test_a_type_is_exact_in_the_way_that_the_page_says(model_type: str, found: Dict[str, Outcome]) -> None:
    outcome = found[model_type]
    assert outcome.result in ("packed", "rows"), outcome.note
    assert outcome == suite.read_outcomes()[model_type], "run make models, and look at the changes of docs/models.md"


def test_the_page_is_fresh_and_lists_every_type() -> None:
    outcomes = suite.read_outcomes()
    assert list(outcomes) == suite.all_types()
    assert suite.PAGE.read_text(encoding="utf-8") == suite.page(outcomes, transformers.__version__)


def test_nothing_is_silently_wrong() -> None:
    wrong = {name: outcome.note for name, outcome in suite.read_outcomes().items() if outcome.result == "wrong"}
    assert not wrong, json.dumps(wrong, indent=1)


def test_a_deviation_is_found() -> None:
    import torch

    gradient = {"weight": torch.tensor([3.0, 4.0])}
    assert suite.deviation((1.0, gradient), (1.0, gradient), ["weight"]) == ""
    assert "loss off" in suite.deviation((1.0 + 2e-5, gradient), (1.0, gradient), ["weight"])
    changed = {"weight": torch.tensor([3.0, 4.01])}
    assert "gradient of weight by 0.002" in suite.deviation((1.0, changed), (1.0, gradient), ["weight"])
    assert "only one of the two" in suite.deviation((1.0, {}), (1.0, gradient), ["weight"])
