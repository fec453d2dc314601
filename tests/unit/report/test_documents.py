"""The held-out documents whose loss changed most."""

from pathlib import Path

import numpy as np
import pytest

from ftdist.config.data import SourceConfig
from ftdist.data.loader import open_set
from ftdist.data.prepare import prepare
from ftdist.data.tokenizer import bytes_tokenizer
from ftdist.report import documents
from ftdist.report.documents import MIN_TOKENS, changed_documents
from ftdist.run.rundir import RunDir
from ftdist.track.gain import DocumentLosses, write_evaluation
from tests.unit.data_tools import data_config, write_jsonl

POINTS = {"docs": [(0, 3.0), (9, 2.0)]}


def test_the_documents_that_gained_and_lost_most_are_those_whose_loss_per_token_changed_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"text <b>{number}</b> {'x' * (40 * number % 100)}" for number in range(9)] + ["short"]
    source = write_jsonl(tmp_path / "docs.jsonl", [{"text": text} for text in texts])
    train = write_jsonl(tmp_path / "train.jsonl", [{"text": "something else"}])
    config = data_config(tmp_path, f"data.sources.mine.path={train}")
    config.data.heldout = {"docs": SourceConfig(path=str(source))}
    run = RunDir(tmp_path / "run")
    run.path.mkdir()
    assert changed_documents(run, config, POINTS) == {}, "nothing is prepared or evaluated"
    dataset, tokenizer = open_set(prepare(config), "docs"), bytes_tokenizer()
    names, tokens = [], []
    for row in range(dataset.num_rows):
        for ids, trained in dataset.row(row):
            names.append(tokenizer.decode(ids.tolist(), skip_special_tokens=True))
            tokens.append(float(trained[1:].sum()))
    assert names != texts, "the rows have another order"
    changes = np.array([-9.0 if name == "short" else 0.25 * (3 - texts.index(name)) for name in names])
    weights = np.array(tokens)
    write_evaluation(run, 0, {"docs": DocumentLosses(3 * weights, weights)})
    write_evaluation(run, 9, {"docs": DocumentLosses((3 + changes) * weights, weights)})
    monkeypatch.setattr(documents, "SHOWN", 4)
    found = changed_documents(run, config, POINTS)["docs"]
    assert [one["change"] for one in found["gained"]] == pytest.approx([-1.25, -1.0, -0.75, -0.5])
    assert [one["change"] for one in found["lost"]] == pytest.approx([0.75, 0.5, 0.25]), "one did not change"
    for one, number in zip([*found["gained"], *found["lost"]], [8, 7, 6, 5, 0, 1, 2], strict=True):
        assert one["text"].startswith(texts[number][:50]) and one["before"] == pytest.approx(3.0)
        assert one["tokens"] == len(texts[number]) >= MIN_TOKENS, "with the stop token, without the first byte"
    write_evaluation(run, 0, {"docs": DocumentLosses(3 * weights, weights + 1)})
    write_evaluation(run, 9, {"docs": DocumentLosses(weights, weights + 1)})
    assert changed_documents(run, config, POINTS) == {}, "they are not the documents of the data"
