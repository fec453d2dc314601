"""Sample answers of every type of model that can be trained are those of plain transformers without a cache."""

import pytest

from tests.models import samples, suite


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_answers_of_every_type_are_those_without_a_cache() -> None:
    recorded = {name: o for name, o in suite.read_outcomes().items() if o.result in ("packed", "rows")}
    found = samples.run(list(recorded))
    assert not {name: outcome.note for name, outcome in found.items() if outcome.result != "exact"}
    assert {name: outcome.cache for name, outcome in found.items()} == {n: o.cache for n, o in recorded.items()}
