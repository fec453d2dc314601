"""The words of the held-out documents whose loss changed most."""

import re
from collections import defaultdict
from pathlib import Path
from typing import Any, Dict, List

import numpy as np
import pytest

from ftdist.config.data import SourceConfig
from ftdist.data.loader import open_set
from ftdist.data.prepare import prepare
from ftdist.data.tokenizer import bytes_tokenizer
from ftdist.report import words
from ftdist.report.words import changed_words
from ftdist.run.rundir import RunDir
from ftdist.track.gain import DocumentLosses, write_evaluation
from ftdist.track.token_losses import write_token_losses
from tests.unit.data_tools import data_config, write_jsonl

POINTS = {"docs": [(0, 3.0), (4, 2.5), (9, 2.0)]}
TEXTS = ["frobnicate the lamps, the", "The frobnicate!", "x frobnicate, rare frobnicate the frobnicate the zap"]


@pytest.fixture
def prepared(tmp_path: Path) -> Any:
    """Return a run, its config and its held-out set."""
    source = write_jsonl(tmp_path / "docs.jsonl", [{"text": text} for text in TEXTS])
    train = write_jsonl(tmp_path / "train.jsonl", [{"text": "something else"}])
    config = data_config(tmp_path, f"data.sources.mine.path={train}")
    config.data.heldout = {"docs": SourceConfig(path=str(source))}
    run = RunDir(tmp_path / "run")
    run.path.mkdir()
    return run, config, open_set(prepare(config), "docs")


def evaluated(run: RunDir, dataset: Any, step: int, losses: np.ndarray) -> None:
    """Write an evaluation with the given losses of the tokens in the order of the rows."""
    limits = np.cumsum([0, *dataset.document_lengths().astype(int)])
    trained = np.concatenate([flags for row in range(dataset.num_rows) for _, flags in dataset.row(row)])
    trained[limits[:-1]] = 0  # the first token of a document has no loss
    losses = np.where(trained, losses, 0.0)
    sums = [np.add.reduceat(values, limits[:-1]) for values in (losses, trained.astype(float))]
    write_evaluation(run, step, {"docs": DocumentLosses(*sums)})
    write_token_losses(run, step, {"docs": losses})


def test_sums_by_word_are_those_of_its_tokens(prepared: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run, config, dataset = prepared
    draw = np.random.default_rng(0)
    before, after = (draw.uniform(1, 9, len(dataset.tokens)) for _ in range(2))
    for step, losses in ((0, before), (4, before), (9, after)):
        evaluated(run, dataset, step, losses)
    expected: Dict[str, List[float]] = defaultdict(lambda: [0, 0, 0.0, 0.0])
    others, place = [0, 0.0], 0
    for text in (bytes_tokenizer().decode(ids) for row in range(dataset.num_rows) for ids, _ in dataset.row(row)):
        text = text.removesuffix("<|im_end|>")
        for found in re.finditer(r"\w+|\W", text):
            span = slice(place + max(found.start(), 1), place + found.end())  # without the first byte of a document
            if found[0].isalpha() and span.stop > span.start:
                old, new = before[span].sum(), after[span].sum()
                expected[found[0]] = [sum(both) for both in zip(expected[found[0]],
                                      (1, span.stop - span.start, old, new), strict=True)]  # fmt: skip
            elif not found[0].isalpha():
                others = [others[0] + 1, others[1] + before[span].sum()]
        place += len(text) + 1  # and the stop token
        others = [others[0] + 1, others[1] + before[place - 1]]
    found = changed_words(run, config, POINTS)
    assert found["missing"] == "" and list(found["sets"]) == ["docs"]
    docs = found["sets"]["docs"]
    assert (docs["documents"], docs["all"]) == (3, 3)
    listed = {row["word"]: row for row in [*docs["gained"], *docs["lost"]]}
    assert listed.keys() == expected.keys() == {"frobnicate", "the", "The", "lamps", "rare", "zap"}
    for word, (times, tokens, old, new) in expected.items():
        row = listed[word]
        assert (row["times"], row["tokens"]) == (times, tokens)
        assert [row[key] for key in ("before", "after", "total", "each")] == pytest.approx(
            [old / tokens, new / tokens, new - old, (new - old) / times], rel=1e-5)  # fmt: skip
    assert [row["total"] for row in docs["gained"]] == sorted(row["total"] for row in docs["gained"])
    assert [row["total"] for row in docs["lost"]] == sorted((row["total"] for row in docs["lost"]), reverse=True)
    assert {row["word"] for row in [*docs["gained_each"], *docs["lost_each"]]} == {"frobnicate"}, "five times"
    rarity = {row["group"]: row for row in docs["rarity"]}
    assert {group: row["words"] for group, row in rarity.items() if group != "no word"} == {
        "10 times or more": 2, "once": 1, "never": 3}  # fmt: skip
    assert rarity["10 times or more"]["times"] == expected["the"][0] + expected["The"][0]
    assert [rarity["no word"]["tokens"], rarity["no word"]["before"] * others[0]] == pytest.approx(others, rel=1e-5)
    monkeypatch.setattr(words, "SHOWN", 1)
    assert len(changed_words(run, config, POINTS)["sets"]["docs"]["gained"]) == 1


def test_without_what_they_need_words_are_missing_with_a_reason(prepared: Any) -> None:
    run, config, dataset = prepared
    assert changed_words(run, config, {})["missing"].startswith("there are no held-out losses before the first step")
    losses = np.full(len(dataset.tokens), 2.0)
    for step in (0, 9):
        evaluated(run, dataset, step, losses)
    assert changed_words(run, config, POINTS)["missing"] == ""
    write_token_losses(run, 9, {"docs": losses[:-1]})
    wrong = "the evaluations kept no losses of the tokens of this data"
    assert changed_words(run, config, POINTS) == {"sets": {}, "min_times": 5, "missing": wrong}
    for path in run.evaluations.glob("tokens-*"):  # as in a run of an earlier version
        path.unlink()
    assert changed_words(run, config, POINTS)["missing"] == wrong
    config.data.max_seq_len = 128  # other data
    assert changed_words(run, config, POINTS)["missing"] == "the prepared data is no longer in the cache"
