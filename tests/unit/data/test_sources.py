"""Every kind of file is read lazily with its places; every broken one is refused by file and line."""

import hashlib
import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from ftdist.base.errors import DataError
from ftdist.config.schema import SourceConfig
from ftdist.data.builtin_sources import fake_chats, stdlib_docs
from ftdist.data.sources import chunks, read_source
from tests.unit.data_tools import chat, write_jsonl

RECORDS = [{"text": "one"}, {"text": "two, and more"}]


def located(path: Path | str, **fields: Any) -> list[tuple[str, Any]]:
    return list(read_source("data.sources.mine", SourceConfig(path=str(path), **fields)))


def refusal(path: Path | str, **fields: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        located(path, **fields)
    return caught.value


def test_jsonl_places_are_lines_and_blank_lines_are_not_records(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('\ufeff{"text": "one"}\n\n{"text": "two"}', encoding="utf-8")
    assert located(path) == [(f"{path}:1", {"text": "one"}), (f"{path}:3", {"text": "two"})]


@pytest.mark.parametrize("content", [json.dumps(RECORDS, indent=1), "\n".join(json.dumps(r) for r in RECORDS)])
def test_json_is_a_list_or_lines(tmp_path: Path, content: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(content)
    assert [record for _, record in located(path)] == RECORDS


def test_csv_txt_parquet_and_arrow(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import ipc, parquet

    table = pyarrow.Table.from_pylist(RECORDS)
    (tmp_path / "a.csv").write_text('text\none\n"two, and more"\n')
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    parquet.write_table(table, tmp_path / "a.parquet")
    with ipc.new_stream(tmp_path / "stream.arrow", table.schema) as writer:
        writer.write_table(table)
    with ipc.new_file(tmp_path / "file.arrow", table.schema) as writer:
        writer.write_table(table)
    for name in ("a.csv", "a.parquet", "stream.arrow", "file.arrow"):
        assert [record for _, record in located(tmp_path / name)] == RECORDS, name
    assert located(tmp_path / "a.txt") == [(str(tmp_path / "a.txt"), {"text": "one\n\ntwo\n"})]
    assert located(tmp_path / "a.csv")[1][0] == f"{tmp_path}/a.csv:3"
    assert located(tmp_path / "a.parquet")[1][0] == f"{tmp_path}/a.parquet: row 2"


def test_a_glob_is_read_in_the_order_of_names_and_max_documents_ends_it(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        write_jsonl(tmp_path / f"{name}.jsonl", [{"text": name}] * 2)
    assert [record["text"] for _, record in located(tmp_path / "*.jsonl", max_documents=5)] == ["a", "a", "b", "b", "c"]


def test_reading_is_lazy(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\nbroken\n')
    records = read_source("data.sources.mine", SourceConfig(path=str(path)))
    assert next(records)[1] == {"text": "one"}
    with pytest.raises(DataError):
        next(records)


def test_saved_data_sets_and_their_splits(tmp_path: Path) -> None:
    import datasets

    dataset = datasets.Dataset.from_list([chat("q", "a"), chat("q", "a", "q", "a")])
    dataset.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(test=dataset).save_to_disk(tmp_path / "many")
    assert [len(record["messages"]) for _, record in located(tmp_path / "one")] == [2, 4]
    assert len(located(tmp_path / "many", split="test")) == 2
    error = refusal(tmp_path / "many")
    assert "has no split 'train'" in error.found
    assert error.expected == "one of test"
    assert error.fix == "data.sources.mine.split=test"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b'{"text": "one"}\n{"text": \n', "a.jsonl:2 is not JSON: Expecting value at column 9"),
        ("a.jsonl", b'{"text": "one"}\n{"text": "\xff"}\n', "a.jsonl:2 is not UTF-8: byte 0xff at column 11"),
        ("a.jsonl", b"", "a.jsonl is empty"),
        ("a.jsonl", b"\n \n", "a.jsonl holds no records"),
        ("a.json", b'[{"text": 1},\n]', "a.json:2 is not JSON"),
        ("a.json", b"[]", "a.json holds no records"),
        ("a.csv", b"text,n\none,1\n\xfftwo,2\n", "a.csv:3 is not UTF-8"),
        ("a.csv", b"text,n\none\n", "a.csv:2 has fewer columns than the header"),
        ("a.csv", b"text\none,1\n", "a.csv:2 has more columns than the header"),
        ("a.txt", b"one\n\xe9\n", "a.txt:2 is not UTF-8: byte 0xe9"),
        ("a.parquet", b"nothing of the kind", "a.parquet is not Parquet"),
        ("a.arrow", b"nothing of the kind", "a.arrow is not Arrow"),
        ("a.tsv", b"text\n", "has the suffix '.tsv'"),
    ],
)
def test_broken_files_are_refused_by_place(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    error = refusal(tmp_path / name)
    assert said in error.found
    assert error.expected


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "a.jsonl",
            '{"text": "' + "a" * 90 + '" "b": 1, "c": "' + "d" * 90 + '"}',
            f'column 103, near …{"a" * 28}" "b": 1, ',
        ),
        ("a.jsonl", '{"text": "one" 1}', 'column 16, near {"text": "one" 1}'),
        ("a.jsonl", '{"text": "' + "a" * 90 + '",', f'near …{"a" * 28}",'),
        ("a.json", '[\n{"text": "one"}\n{"text": "two"}\n]', 'a.json:3 is not JSON: .* column 1, near {"text": "two"}'),
    ],
)
def test_broken_json_is_shown_where_it_is_broken(tmp_path: Path, name: str, content: str, said: str) -> None:
    (tmp_path / name).write_text(content)
    found = refusal(tmp_path / name).found
    assert re.search(said.replace("{", r"\{"), found), found
    assert len(found.partition("near ")[2]) <= 62 and found.endswith("…") == (len(content) > 150)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    assert "no.jsonl does not exist" in refusal(tmp_path / "no.jsonl").found
    assert "matches no file" in refusal(tmp_path / "*.jsonl").found
    write_jsonl(tmp_path / "a.jsonl", RECORDS)
    error = refusal(tmp_path)
    assert "it holds a.jsonl" in error.found
    assert "*.jsonl" in error.fix


def test_a_hub_data_set_that_cannot_be_had_is_one_message() -> None:
    with pytest.raises(DataError) as caught:
        list(read_source("data.sources.mine", SourceConfig(hub="nobody/nothing")))
    assert "data.sources.mine.hub=nobody/nothing, split train" in caught.value.found
    assert "\n" not in caught.value.found


def test_a_hub_data_set_is_streamed_at_its_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def load_dataset(*names: str, **options: Any) -> list[Any]:
        assert names == ("org/name", "small")
        assert options == {"split": "test", "revision": "abc", "streaming": True}
        return RECORDS

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    source = SourceConfig(hub="org/name", subset="small", split="test", revision="abc", max_documents=1)
    assert list(read_source("data.sources.mine", source)) == [("org/name (small): row 1", {"text": "one"})]


def test_stdlib_docs_are_thousands_of_different_answers_in_a_fixed_order() -> None:
    pairs = list(stdlib_docs())
    answers = [record["messages"][1]["content"] for _, record in pairs]
    assert len(pairs) > 2000
    assert len(set(answers)) == len(answers)
    assert all(30 <= len(answer) <= 1200 for answer in answers)
    names = [where.removeprefix("stdlib_docs: ") for where, _ in pairs]
    assert names == sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest()[:8])
    assert len({name.split(".")[0] for name in names[:100]}) > 20, "a part of them is mixed"
    questions = {where: record["messages"][0]["content"] for where, record in pairs}
    assert "textwrap.dedent" in questions["stdlib_docs: textwrap.dedent"]


def test_fake_chats_are_quick_seeded_and_of_many_lengths() -> None:
    started = time.process_time()
    chats = list(fake_chats("a", 5000))
    assert time.process_time() - started < 2
    assert chats[:10] == list(fake_chats("a", 10))
    assert chats[:10] != list(fake_chats("b", 10))
    assert len({sum(len(m["content"]) for m in record["messages"]) for _, record in chats}) > 500


def test_a_chunk_ends_early_where_texts_are_long() -> None:
    records = [("", {"text": "x" * 400})] * 3 + [("", {"text": "x"})] * 7
    assert [len(chunk) for chunk in chunks(iter(records), 4, 800)] == [2, 4, 4]
