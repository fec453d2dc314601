"""General texts: they are prepared as sets of their own, and never trained on."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from ftdist.base.errors import ConfigError
from ftdist.config.checks import check_data
from ftdist.config.data import DataConfig, SourceConfig
from ftdist.config.resumable import config_hash
from ftdist.data.loader import PreparedSet
from ftdist.data.prepare import prepare
from ftdist.data.tokenizer import bytes_tokenizer
from ftdist.run.prepared import GENERAL_TEXTS, content_hash, data_folder, read_meta
from ftdist.train.main import open_general, open_heldout
from tests.unit.data_tools import chat, data_config, document_bytes, write_jsonl

TEXTS = [json.loads(line) for line in GENERAL_TEXTS.read_text(encoding="utf-8").splitlines()]
ON = "data.builtin_general=true"


def whole(record: dict[str, str]) -> str:
    return record.get("text") or record["prompt"] + record["completion"]


def config_of(folder: Path, records: list[Any], *overrides: str) -> Any:
    source = write_jsonl(folder / "train.jsonl", records)
    return data_config(folder, f"data.sources.mine.path={source}", "data.max_seq_len=1024", *overrides)


def texts_of(opened: PreparedSet) -> dict[str, str]:
    """Return the text of each document, and its trained part."""
    tokenizer, found = bytes_tokenizer(), {}
    for row in range(opened.num_rows):
        for ids, trained in opened.row(row):
            text = tokenizer.decode(ids.tolist(), skip_special_tokens=True)
            found[text] = tokenizer.decode(ids[trained == 1].tolist())
    return found


def test_the_built_in_texts_are_a_set_of_their_own_whose_stop_tokens_do_not_count(tmp_path: Path) -> None:
    config = config_of(tmp_path, [chat("q", f"answer {number}") for number in range(9)], ON)
    folder = prepare(config)
    found = texts_of(open_general(folder)["builtin"])
    assert len(found) == len(TEXTS) == read_meta(folder)["general"]["builtin"]["documents"]
    for record in TEXTS:
        expected = record.get("completion") or record["text"][1:]  # nothing predicts the first token of a text
        assert found[whole(record)] == expected, "without the stop token"
    assert not open_heldout(folder) and "builtin" not in read_meta(folder)["sets"]
    before = content_hash(config, folder)
    with (folder / "general" / "builtin" / "trained.u8").open("r+b") as file:
        file.write(b"\2")
    assert content_hash(config, folder) != before, "a resume notices another set"


def test_a_general_text_that_is_trained_is_left_out_and_counted(tmp_path: Path) -> None:
    mine = [{"text": f"a general text {number}"} for number in range(4)]
    path = write_jsonl(tmp_path / "mine.jsonl", mine)
    trained = [TEXTS[0], TEXTS[-10], mine[2], {"text": "something else"}]
    folder = prepare(config_of(tmp_path, trained, ON, f"data.general.mine.path={path}"))
    general, meta = open_general(folder), read_meta(folder)
    found = {name: texts_of(opened) for name, opened in general.items()}
    assert set(found["mine"]) == {"a general text 0", "a general text 1", "a general text 3"}
    assert len(found["builtin"]) == len(TEXTS) - 2
    assert not {whole(record) for record in trained} & {*found["mine"], *found["builtin"]}
    assert meta["general"]["builtin"]["left_out"] == 2 and meta["general"]["mine"]["left_out"] == 1
    assert "1 document of the training data left out of the general set 'mine'" in meta["warnings"]
    assert meta["sets"]["train"]["documents"] == 4, "the training data is the same"


def test_a_general_set_without_a_document_is_not_measured(tmp_path: Path) -> None:
    config = config_of(tmp_path, [{"text": "the same"}])
    config.data.general = {"mine": SourceConfig(path=str(tmp_path / "train.jsonl"))}
    folder = prepare(config)
    assert open_general(folder) == {}
    assert any("no token of the general set 'mine' would be" in text for text in read_meta(folder)["warnings"])


def test_general_texts_do_not_change_what_is_trained(tmp_path: Path) -> None:
    records = [chat("q", f"answer {number}") for number in range(20)]
    without = config_of(tmp_path, records, "data.heldout_share=0.2", "data.max_heldout_documents=1")
    with_them = config_of(tmp_path, records, "data.heldout_share=0.2", "data.max_heldout_documents=1", ON)
    folders = prepare(without), prepare(with_them)
    assert folders[0] != folders[1]
    for file in ("tokens.i32", "row_docs.i64", "row_offsets.i64"):
        for name in ("train", "heldout"):
            assert (folders[0] / name / file).read_bytes() == (folders[1] / name / file).read_bytes()
    assert not {whole(record) for record in TEXTS} & set(document_bytes(folders[1])), "none of them is trained"
    assert read_meta(folders[0])["general"] == {} and not (folders[0] / "general").exists()


def test_without_general_texts_key_and_hash_are_those_of_earlier_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path, [chat("q", "a")])
    folder, known = data_folder(config), config_hash(config)
    config.data.builtin_general = True
    assert data_folder(config) != folder and config_hash(config) != known
    monkeypatch.setattr("ftdist.run.prepared.GENERAL_TEXTS", write_jsonl(tmp_path / "others.jsonl", [{"text": "b"}]))
    other = data_folder(config)
    monkeypatch.undo()
    assert data_folder(config) != other, "other texts are other data"


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"general": {"builtin": SourceConfig(path="a.jsonl")}}, "cannot be the name of a general set"),
        ({"general": {"a/b": SourceConfig(path="a.jsonl")}}, "cannot be the name of a general set"),
        ({"general": {"mine": SourceConfig()}}, "data.general.mine sets none of"),
        ({"sources": {"mine": SourceConfig(builtin="general")}}, "data.sources.mine.builtin=general"),
    ],
)
def test_wrong_sets_are_refused(changes: Any, found: str) -> None:
    sources = {"sources": {"mine": SourceConfig(path="a.jsonl")}}
    with pytest.raises(ConfigError, match=found):
        check_data(DataConfig(**{**sources, **changes}))


def test_the_built_in_texts_are_short_different_and_of_several_kinds() -> None:
    assert len(Counter(record["kind"] for record in TEXTS)) == 8 and 45 <= len(TEXTS) <= 60
    assert len({whole(record) for record in TEXTS}) == len(TEXTS)
    assert all(15 <= len(whole(record)) < 500 for record in TEXTS)


def test_a_set_in_which_no_token_counts_is_not_measured(tmp_path: Path) -> None:
    empty = write_jsonl(tmp_path / "general.jsonl", [{"text": "a"}])  # nothing predicts the first token
    folder = prepare(config_of(tmp_path, [chat("q", "answer")], f"data.general.mine.path={empty}"))
    assert any("no token of the general set 'mine' would be" in text for text in read_meta(folder)["warnings"])
    assert open_general(folder) == {}
