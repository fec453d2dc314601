"""Fields of configs that change what a type computes: exact, or refused with the reason."""

from typing import Dict

import pytest

from tests.models import fields
from tests.models.alone import Outcome
from tests.models.fields import CI, REFUSED, ROWS, SMALLER_STAGES, VARIANTS


@pytest.fixture(scope="module")
def found(request: pytest.FixtureRequest) -> Dict[str, Outcome]:
    """Examine the variants whose tests run: those of CI, and with ``--slow`` all that were selected."""
    items = [item for item in request.session.items if getattr(item, "originalname", "") == "test_a_variant"]
    tested = [item for item in items if not item.get_closest_marker("skip")]
    names = [item.callspec.params["name"] for item in tested]  # type: ignore[attr-defined]
    return fields.run(names, [name for name in names if name not in CI])


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in CI else [pytest.mark.slow]) for n in VARIANTS])
def test_a_variant(name: str, found: Dict[str, Outcome]) -> None:
    outcome = found[name]
    if name in REFUSED:
        assert outcome.result == "refused" and REFUSED[name] in outcome.note
        return
    assert outcome.result == ("rows" if name in ROWS else "packed"), outcome
    assert outcome.checkpointing == "exact"
    if name not in CI:
        zero3 = "refused" if name in SMALLER_STAGES else "exact"
        assert (outcome.zero3, outcome.export) == (zero3, "exact"), outcome
