"""Reading of every kind of source, and the messages about invalid files."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from ftdist.base.errors import DataError
from ftdist.config.schema import SourceConfig
from ftdist.data.sources import chunk_records, read_source
from tests.unit.data_tools import chat, write_jsonl

RECORDS = [{"text": "one"}, {"text": "two, and more"}]


def located(path: Path | str, **fields: Any) -> list[tuple[str, Any]]:
    return list(read_source("data.sources.mine", SourceConfig(path=str(path), **fields)))


def refusal(path: Path | str, **fields: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        located(path, **fields)
    return caught.value


def test_a_jsonl_record_has_its_line_as_location_and_empty_lines_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('\ufeff{"text": "one"}\n\n{"text": "two"}', encoding="utf-8")
    assert located(path) == [(f"{path}:1", {"text": "one"}), (f"{path}:3", {"text": "two"})]


@pytest.mark.parametrize("content", [json.dumps(RECORDS, indent=1), "\n".join(json.dumps(r) for r in RECORDS)])
def test_a_json_file_is_a_list_or_has_one_object_on_each_line(tmp_path: Path, content: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(content)
    assert [record for _, record in located(path)] == RECORDS


def test_csv_txt_parquet_and_arrow_files_are_read(tmp_path: Path) -> None:
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


def test_the_files_of_a_glob_are_sorted_by_name_and_max_documents_limits_their_total(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        write_jsonl(tmp_path / f"{name}.jsonl", [{"text": name}] * 2)
    assert [record["text"] for _, record in located(tmp_path / "*.jsonl", max_documents=5)] == ["a", "a", "b", "b", "c"]


def test_records_are_read_lazily(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\nbroken\n')
    records = read_source("data.sources.mine", SourceConfig(path=str(path)))
    assert next(records)[1] == {"text": "one"}
    with pytest.raises(DataError):
        next(records)


def test_saved_data_sets_and_their_splits_are_read(tmp_path: Path) -> None:
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
def test_an_invalid_file_is_refused_with_its_location(tmp_path: Path, name: str, content: bytes, said: str) -> None:
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
def test_the_text_around_an_error_in_json_is_shown(tmp_path: Path, name: str, content: str, said: str) -> None:
    (tmp_path / name).write_text(content)
    found = refusal(tmp_path / name).found
    assert re.search(said.replace("{", r"\{"), found), found
    assert len(found.partition("near ")[2]) <= 62 and found.endswith("…") == (len(content) > 150)


def test_missing_files_and_folders_without_a_data_set_are_refused(tmp_path: Path) -> None:
    assert "no.jsonl does not exist" in refusal(tmp_path / "no.jsonl").found
    assert "matches no file" in refusal(tmp_path / "*.jsonl").found
    write_jsonl(tmp_path / "a.jsonl", RECORDS)
    error = refusal(tmp_path)
    assert "it holds a.jsonl" in error.found
    assert "*.jsonl" in error.fix


def test_a_hub_data_set_that_cannot_be_read_is_refused_in_one_line() -> None:
    with pytest.raises(DataError) as caught:
        list(read_source("data.sources.mine", SourceConfig(hub="nobody/nothing")))
    assert "data.sources.mine.hub=nobody/nothing, split train" in caught.value.found
    assert "\n" not in caught.value.found


def test_a_hub_data_set_is_streamed_with_its_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def load_dataset(*names: str, **options: Any) -> list[Any]:
        assert names == ("org/name", "small")
        assert options == {"split": "test", "revision": "abc", "streaming": True}
        return RECORDS

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    source = SourceConfig(hub="org/name", subset="small", split="test", revision="abc", max_documents=1)
    assert list(read_source("data.sources.mine", source)) == [("org/name (small): row 1", {"text": "one"})]


def test_a_chunk_of_long_texts_has_fewer_records() -> None:
    records = [("", {"text": "x" * 400})] * 3 + [("", {"text": "x"})] * 7
    assert [len(chunk) for chunk in chunk_records(iter(records), 4, 800)] == [2, 4, 4]
