"""The tests fail if the code has a bug: two bugs here, all of them with ``make mutations`` or --slow."""

from pathlib import Path

import pytest

from tests.mutations import (
    EVALUATION_MUTATIONS,
    EVALUATION_SUITES,
    HEAD_MUTATIONS,
    HEAD_SUITES,
    METHOD_MUTATIONS,
    METHOD_SUITES,
    MUTATIONS,
    ONE_RANK,
    REPORT_MUTATIONS,
    REPORT_SUITES,
    ROOT,
    SUITES,
    Mutation,
    is_caught,
    mutate,
    prove,
)

CHEAP = {"divided by the accumulation steps twice", "mask one position off"}
ONE_CASE = {"invariance suite": [ONE_RANK]}


def test_every_mutation_applies_to_the_code(tmp_path: Path) -> None:
    for mutation in (*MUTATIONS, *METHOD_MUTATIONS, *HEAD_MUTATIONS, *EVALUATION_MUTATIONS, *REPORT_MUTATIONS):
        path = tmp_path / mutation.file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text((ROOT / mutation.file).read_text(encoding="utf-8"), encoding="utf-8")
        mutate(tmp_path, mutation)
        compile(path.read_text(encoding="utf-8"), str(path), "exec")
    assert (len(MUTATIONS), len(METHOD_MUTATIONS), len(HEAD_MUTATIONS)) == (10, 6, 8)


@pytest.mark.parametrize("mutation", [m for m in MUTATIONS if m.bug in CHEAP], ids=lambda m: m.bug)
def test_a_bug_is_caught(mutation: Mutation) -> None:
    assert prove(mutation, ONE_CASE)["invariance suite"]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.bug)
def test_each_of_ten_bugs_is_caught(mutation: Mutation) -> None:
    assert is_caught(mutation, prove(mutation, SUITES))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("mutation", METHOD_MUTATIONS, ids=lambda m: m.bug)
def test_each_bug_of_an_adapter_is_caught(mutation: Mutation) -> None:
    assert prove(mutation, METHOD_SUITES)["tests"]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("mutation", HEAD_MUTATIONS, ids=lambda m: m.bug)
def test_each_bug_of_the_loss_head_and_of_recomputation_is_caught(mutation: Mutation) -> None:
    assert prove(mutation, HEAD_SUITES)["tests"]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("mutation", EVALUATION_MUTATIONS, ids=lambda m: m.bug)
def test_each_bug_of_evaluation_is_caught(mutation: Mutation) -> None:
    assert prove(mutation, EVALUATION_SUITES)["tests"]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("mutation", REPORT_MUTATIONS, ids=lambda m: m.bug)
def test_each_bug_of_the_report_is_caught(mutation: Mutation) -> None:
    assert prove(mutation, REPORT_SUITES)["tests"]
