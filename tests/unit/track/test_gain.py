"""Gain of held-out sets: intervals over documents, and the warning when forgetting outruns it."""

from pathlib import Path
from typing import Any, Dict, Tuple

import numpy as np
import pytest

from ftdist.run.rundir import RunDir
from ftdist.track.gain import (
    DocumentLosses,
    evaluation_file,
    evaluations_of,
    forgets_too_much,
    gain_of,
    interval_of,
    read_evaluation,
    write_evaluation,
)


def _documents(draw: np.random.Generator, count: int, loss: float) -> Tuple[np.ndarray, np.ndarray]:
    """Return documents of different lengths, whose losses per token differ from each other around ``loss``."""
    tokens = draw.integers(1, 100, count).astype(float)
    return tokens * (loss + draw.normal(0.0, 0.5, count)), tokens


def test_the_interval_holds_the_true_loss_in_95_of_100_samples() -> None:
    draw = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        found = interval_of(*_documents(draw, 60, 2.0))
        assert found.low < found.value < found.high < found.low + 1
        hits += found.low <= 2.0 <= found.high
    assert 0.89 <= hits / 200 <= 0.99


def test_the_loss_is_a_ratio_of_sums_and_documents_without_tokens_do_not_count() -> None:
    found = interval_of(np.array([8.0, 1.0, 0.0]), np.array([2.0, 1.0, 0.0]))
    assert (found.value, found.low, found.high) == (3.0, 1.0, 4.0)
    assert np.isnan(interval_of(np.array([np.nan, 1.0]), np.array([1.0, 1.0])).low)
    one = interval_of(np.array([8.0, 1.0]), np.array([2.0, 0.0]))
    assert one.value == 4.0 and np.isnan([one.low, one.high]).all(), "one document says nothing about others"


def test_each_evaluation_has_the_interval_of_its_own_documents(tmp_path: Path) -> None:
    run, draw = RunDir(tmp_path), np.random.default_rng(3)
    (losses, tokens), (others, fewer) = _documents(draw, 50, 3.0), _documents(draw, 20, 2.0)
    for step, of_a in ((0, losses), (2, losses / 2), (4, losses / 4)):
        sets = {
            "a": DocumentLosses(of_a, tokens, {"accuracy": tokens / 4}),
            "b": DocumentLosses(others, fewer, {"accuracy": fewer}),
        }
        write_evaluation(run, step, sets if step else {"a": sets["a"]})
    (run.evaluations / "step-00000004.npz").write_bytes(b"damaged")
    points = [(step, 1.0) for step in (0, 2, 4)]
    found = evaluations_of(run, {"a": points, "b": points, "c": points})
    assert [[one["step"] for one in found[name]] for name in "abc"] == [[0, 2], [2], []]
    alone = interval_of(losses / 2, tokens)
    assert found["a"][1]["loss"] == pytest.approx(vars(alone)) and found["a"][1]["accuracy"]["low"] == 0.25
    assert found["a"][1]["perplexity"]["high"] == pytest.approx(np.exp(alone.high))
    assert (
        found["b"][0]["loss"] == pytest.approx(vars(interval_of(others, fewer)))
        and found["b"][0]["accuracy"]["high"] == 1
    )
    by_hand = np.random.default_rng(0).integers(0, 50, (1000, 50))
    ratios = losses[by_hand].sum(1) / tokens[by_hand].sum(1)
    assert found["a"][0]["loss"]["low"] == pytest.approx(np.quantile(ratios, 0.025))


def test_the_change_is_paired_by_document(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    losses, tokens = _documents(np.random.default_rng(2), 50, 3.0)
    right = {"accuracy": 0.5 * tokens, "entropy": 2 * losses}
    before = DocumentLosses(losses, tokens, right)
    after = DocumentLosses(losses - 0.25 * tokens, tokens, {"accuracy": 0.75 * tokens, "new": tokens})
    write_evaluation(run, 0, {"docs/ä": before, "gone": before})
    write_evaluation(run, 9, {"docs/ä": after, "other": after})
    points = [(0, 3.0), (9, 2.75)]
    found = gain_of(run, {"docs/ä": points, "gone": points, "other": points, "once": [(0, 3.0)]})
    assert list(found) == ["docs/ä"] and found["docs/ä"]["documents"] == 50
    change = found["docs/ä"]["change"]
    assert [change[part] for part in ("value", "low", "high")] == pytest.approx([-0.25] * 3), (
        "each document gained 0.25"
    )
    assert found["docs/ä"]["after"]["high"] - found["docs/ä"]["after"]["low"] > 0.1, "documents differ"
    assert found["docs/ä"]["before"]["value"] == pytest.approx(losses.sum() / tokens.sum())
    assert list(found["docs/ä"]["metrics"]) == ["accuracy"], "only what both evaluations have"
    accuracy = found["docs/ä"]["metrics"]["accuracy"]
    assert accuracy["change"] == {"value": 0.25, "low": 0.25, "high": 0.25} and accuracy["before"]["value"] == 0.5


def test_means_are_over_tokens_and_not_over_documents() -> None:
    found = DocumentLosses(np.array([2.0, 9.0]), np.array([1.0, 9.0]), {"accuracy": np.array([1.0, 3.0])})
    assert found.means() == {"loss": 1.1, "accuracy": 0.4}


def test_an_evaluation_is_written_whole_and_a_damaged_one_is_not_used(tmp_path: Path) -> None:
    run, numbers = RunDir(tmp_path), np.array([[1.0, 2.0], [3.0, 4.0], [0.0, 2.0]])
    write_evaluation(run, 3, {"a": DocumentLosses(*numbers[:2], {"accuracy": numbers[2]})})
    found = read_evaluation(run, 3)["a"]
    assert [found.losses.tolist(), found.weights.tolist(), found.metrics["accuracy"].tolist()] == numbers.tolist()
    assert [path.name for path in run.evaluations.iterdir()] == ["step-00000003.npz"]
    for content in (b"", b"text", evaluation_file(run, 3).read_bytes()[:-30]):
        evaluation_file(run, 3).write_bytes(content)
        assert read_evaluation(run, 3) == {}
    assert read_evaluation(run, 4) == {}
    np.savez(evaluation_file(run, 5), **{"names": np.array(["a"]), "0": numbers[:2]})
    assert read_evaluation(run, 5)["a"].metrics == {}, "a run of an earlier version"


@pytest.mark.parametrize(
    ("kl", "error", "warned"), [(0.5, 0.01, True), (0.5, 0.11, False), (0.29, 0.0, False), (0.31, 0.0, True)]
)
def test_a_warning_names_one_setting_when_forgetting_outruns_gain(kl: float, error: float, warned: bool) -> None:
    def part(tokens: int, change: float) -> Dict[str, Any]:
        return {"tokens": tokens, "change": {"value": change}}

    gain = {"a": part(300, -0.4), "b": part(100, 0.0)}  # together 0.3 nats for each token, not the mean of 0.4 and 0
    found = forgets_too_much(gain, (9, kl, error), 3e-4)
    assert bool(found) is warned and (not found or "optim.lr=1.0e-04" in found)
    assert forgets_too_much({}, (9, kl, error), 1.0) is None and forgets_too_much(gain, None, 1.0) is None
