"""Reading of every kind of source, and the messages about invalid files."""

import gzip
import json
import lzma
import pickle
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from ftdist.base.errors import DataError
from ftdist.config.schema import SourceConfig
from ftdist.data.sources import chunk_records, read_source
from tests.unit.data_tools import chat, write_jsonl

RECORDS = [{"text": "one"}, {"text": "two, and more"}]


def located(path: Path | str, **fields: Any) -> list[tuple[str, Any]]:
    found = list(read_source("data.sources.mine", SourceConfig(path=str(path), **fields)))
    for _, record in found:
        if isinstance(record, DataError):
            raise record
    return found


def records(path: Path | str, **fields: Any) -> list[Any]:
    return [record for _, record in located(path, **fields)]


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
    found = read_source("data.sources.mine", SourceConfig(path=str(path)))
    assert next(found)[1] == {"text": "one"}
    assert "a.jsonl:2 is not JSON" in next(found)[1].found


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
    evaluated = f"data.heldout.NAME.path={tmp_path}/many data.heldout.NAME.split=test"
    assert error.fix == f"use data with a split for training; evaluate this one: {evaluated}"
    assert len(pasted(evaluated)) == 2
    datasets.DatasetDict(test_sft=dataset, train_sft=dataset, extra=dataset).save_to_disk(tmp_path / "sft")
    assert refusal(tmp_path / "sft").fix == "data.sources.mine.split=train_sft"
    with pytest.raises(DataError) as caught:
        list(read_source("data.heldout.mine", SourceConfig(path=str(tmp_path / "sft"), split="test")))
    assert caught.value.fix == "data.heldout.mine.split=test_sft"


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
        ("a.tsv", b"text\tn\none\n", "a.tsv:2 has fewer columns than the header"),
        ("a.xls", b"text\n", "has the suffix '.xls'"),
        ("a.parquet.gz", b"text\n", "has the suffix '.gz'"),
        ("a.jsonl.gz", b'{"text": "one"}\n', "a.jsonl.gz cannot be decompressed"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "one"}\n', mtime=0)[:-9], "a.jsonl.gz cannot be decompressed"),
        ("a.jsonl.zst", b'{"text": "one"}\n', "a.jsonl.zst cannot be decompressed"),
        ("a.jsonl.gz", gzip.compress(b"", mtime=0), "a.jsonl.gz holds no records"),
        ("a.jsonl", '{"text": "é"}'.encode("utf-16"), "a.jsonl is in UTF-16, not in UTF-8"),
        ("a.csv", "text\né".encode("utf-16le"), "a.csv is in UTF-16LE, not in UTF-8"),
        ("a.json", b'{"train_x": 1,\n"test": [{"text": "one"}]}', "a.json has no split 'train'"),
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


def test_missing_files_and_patterns_that_match_nothing_are_refused(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "chats.jsonl", RECORDS)
    error = refusal(tmp_path / "chats.json")
    assert "chats.json does not exist" in error.found
    assert error.fix == f"data.sources.mine.path={tmp_path}/chats.jsonl"
    (tmp_path / "in").mkdir()
    write_jsonl(tmp_path / "in" / "test_sft.jsonl", RECORDS)
    assert refusal(tmp_path / "in" / "train_sft.jsonl").fix == "correct data.sources.mine.path"
    assert refusal(tmp_path / "in" / "test_sfd.jsonl").fix.endswith("test_sft.jsonl"), "what the user asked for"
    assert refusal(tmp_path / "in" / "*.csv").fix == "correct data.sources.mine.path"
    error = refusal(tmp_path / "*.json")
    assert f"*.json matches no file; {tmp_path} holds chats.jsonl, in/" in error.found
    assert pasted(error.fix) == RECORDS
    assert f"there is no folder {tmp_path}/no" in refusal(tmp_path / "no" / "*.jsonl").found
    (tmp_path / "empty").mkdir()
    assert "empty is a folder without data files; it holds nothing" in refusal(tmp_path / "empty").found


FOLDERS: dict[str, tuple[list[str], list[str]]] = {
    "one file": (["a.jsonl", "README.md", "dataset_infos.json", ".hidden/x.jsonl"], ["a.jsonl"]),
    "several files without splits": (["b.jsonl", "in/a.jsonl.gz"], ["b.jsonl", "in/a.jsonl.gz"]),
    "splits by file": (["train.jsonl", "test.jsonl", "dev.jsonl"], ["train.jsonl"]),
    "splits in names": (["my-train-1.jsonl", "my_train_2.jsonl", "my_val.jsonl"],
                        ["my-train-1.jsonl", "my_train_2.jsonl"]),
    "shards": (["data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl", "data/test-00000-of-00001.jsonl"],
               ["data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl"]),
    "splits by folder": (["train/0.jsonl", "test/0.jsonl"], ["train/0.jsonl"]),
    "words with set": (["trainset.jsonl", "testset.jsonl", "devset.jsonl", "heldout.jsonl"], ["trainset.jsonl"]),
    "names without the word": (["latest.jsonl", "prätest.jsonl"], ["latest.jsonl", "prätest.jsonl"]),
    "splits after a dot": (["my.train.jsonl", "my.test.jsonl", "a.b.dev.jsonl.gz", "c.jsonl"], ["my.train.jsonl"]),
    "splits after a digit or space": (["my 1train.jsonl", "2023test.jsonl"], ["my 1train.jsonl"]),
    "shards after a dot": (["my.train-0-of-1.jsonl", "my.test-0-of-1.jsonl"], ["my.train-0-of-1.jsonl"]),
    "only the test set has a name": (["data.jsonl", "test.jsonl", "dev_set_2.jsonl", "eval/x.jsonl"], ["data.jsonl"]),
    "a name with both splits": (["train_test_split.jsonl", "test.jsonl"], ["train_test_split.jsonl"]),
    "a word in a name beside a split": (["train.jsonl", "unit_test_generation.jsonl"], ["train.jsonl"]),
}  # fmt: skip


def pasted(fix: str) -> list[Any]:
    """Return the records of a source that is set as the fix of a message says, through Hydra's grammar."""
    sources: dict[str, dict[str, str]] = {}
    for override in OverridesParser.create().parse_overrides([word for word in shlex.split(fix) if "=" in word]):
        source, _, field = override.key_or_group.rpartition(".")
        sources.setdefault(source, {})[field] = str(override.value())
    return [record for where, fields in sources.items() for _, record in read_source(where, SourceConfig(**fields))]


def make_folder(folder: Path, names: list[str]) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        content = f'{{"text": "{name}"}}\n'.encode()
        (folder / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return folder


@pytest.mark.parametrize("kind", FOLDERS)
def test_the_files_of_the_split_are_read_from_a_folder(kind: str, tmp_path: Path) -> None:
    names, expected = FOLDERS[kind]
    assert [record["text"] for record in records(make_folder(tmp_path, names))] == expected


def test_a_split_that_a_folder_does_not_have_is_refused_and_test_data_is_never_offered(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, ["train_sft-0-of-1.jsonl", "test_sft-0-of-1.jsonl", "validation.jsonl"])
    assert [record["text"] for record in records(folder, split="dev")] == ["validation.jsonl"]
    error = refusal(folder)
    assert error.expected == "one of test_sft, train_sft, validation"
    assert error.fix == "data.sources.mine.split=train_sft"
    only_test = make_folder(tmp_path / "only", ["dev.jsonl", "test.jsonl"])
    assert "mine.split" not in refusal(only_test).fix
    assert [record["text"] for record in pasted(refusal(only_test).fix)] == ["test.jsonl"]
    with pytest.raises(DataError) as caught:
        folder = make_folder(tmp_path / "data", ["data.jsonl", "test.jsonl"])
        list(read_source("data.heldout.mine", SourceConfig(path=str(folder))))
    assert caught.value.fix == "data.heldout.mine.split=test"


HINTS: dict[str, tuple[list[str], str, list[str]]] = {
    "several kinds": (["a.jsonl", "b.txt"], "*.jsonl", ["a.jsonl"]),
    "several kinds and splits": (["train.json", "test.json", "train.jsonl"], "train.json", ["train.json"]),
    "several kinds in folders": (["train/a.jsonl", "train/b.json", "test/a.json"], "train/*.json", ["train/b.json"]),
    "several kinds, several files": (["train-1.json", "train-2.json", "test.json", "train.jsonl"], "train-*.json",
                                     ["train-1.json", "train-2.json"]),
    "several kinds, two endings": (["train.json", "x/train.json.gz", "test.json", "train.txt"], "**/train*.json*",
                                   ["train.json", "x/train.json.gz"]),
    "no common name": (["x_train.json", "train_y.json", "test.json", "train.jsonl"], "train_y.json",
                       ["train_y.json", "x_train.json"]),
    "a word in the middle": (["math.jsonl", "unit_test_generation.jsonl"], "math.jsonl", ["math.jsonl"]),
    "a word at the end": (["a.jsonl", "b.jsonl", "my_test.jsonl"], "a.jsonl", ["a.jsonl", "b.jsonl"]),
    "*.json in folders": (["train/a.json", "test/a.json"], "train/*.json", ["train/a.json"]),
    "*.json in a folder": (["x/y/a.json", "b.jsonl"], "**/*.json", ["x/y/a.json"]),
    "*.json compressed": (["b.json.gz", "x/a.json.gz"], "**/*.json.gz", ["b.json.gz", "x/a.json.gz"]),
    "*.jsonl": (["a.jsonl.gz", "b.jsonl.gz"], "*.jsonl.gz", ["a.jsonl.gz", "b.jsonl.gz"]),
    "train_s*.gz": (["train_sft.jsonl", "train_gen.jsonl", "test_sft.jsonl"], "train_sft.jsonl", ["train_sft.jsonl"]),
    "test*.gz": (["train.jsonl", "test.jsonl"], "train.jsonl", ["train.jsonl"]),
    "*.gz": (["train_sft.jsonl", "train_gen.jsonl", "test_sft.jsonl"], "train_*.jsonl",
             ["train_gen.jsonl", "train_sft.jsonl"]),
}  # fmt: skip


@pytest.mark.parametrize("kind", HINTS)
def test_the_path_that_a_message_offers_reads_the_files_for_training_and_no_other(kind: str, tmp_path: Path) -> None:
    names, offered, expected = HINTS[kind]
    folder = make_folder(tmp_path, names)
    fix = refusal(folder / kind.split()[0] if "*" in kind else folder).fix
    assert f".path={folder}/{offered}" in fix
    assert [record["text"] for record in pasted(fix)] == expected


def compressed(suffix: str, content: bytes) -> bytes:
    import bz2
    import lzma

    import pyarrow

    if suffix == ".zst":  # two frames, as `zstd -c a b` writes them
        half = len(content) // 2
        return b"".join(pyarrow.compress(part, "zstd", asbytes=True) for part in (content[:half], content[half:]))
    return {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}[suffix](content)


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_compressed_files_are_read(suffix: str, tmp_path: Path) -> None:
    content = b"".join(b'{"text": "%d"}\n' % number for number in range(5000))
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(compressed(suffix, content))
    assert [record["text"] for record in records(path)] == [str(number) for number in range(5000)]
    assert located(path)[1][0] == f"{path}:2"


PRETTY = "\n".join(json.dumps(record, indent=2) for record in RECORDS)
LAYOUTS = {
    "lines.ndjson": "\n".join(map(json.dumps, RECORDS)),
    "list.json": json.dumps(RECORDS),
    "list.jsonl": json.dumps(RECORDS, indent=1),
    "pretty.json": PRETTY,
    "pretty.jsonl": PRETTY.replace("\n", "\r\n"),
    "commas.json": PRETTY.replace("}\n{", "},\n{"),
    "wrapped.json": json.dumps({"version": "1", "data": RECORDS}),
    "wrapped.jsonl": json.dumps({"data": RECORDS}, indent=4),
    "splits.json": json.dumps({"test": [{"text": "no"}], "train": RECORDS}),
    "wrapped-splits.json": json.dumps({"version": 1, "data": {"test": [{"text": "no"}], "train": RECORDS}}),
    "comma.csv": 'text\none\n"two, and more"\n',
    "semicolon.csv": "text;n\none;1\ntwo, and more;2\n",
    "tabs.tsv": "text\tn\none\t1\ntwo, and more\t2\n",
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_of_a_text_file_gives_the_same_records(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(LAYOUTS[name].encode())
    found = [{"text": record["text"]} for record in records(tmp_path / name)]
    assert found == RECORDS


def test_of_several_lists_the_split_says_which_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"version": 1, "good": RECORDS, "other": [{"text": "no"}]}, indent=1))
    assert refusal(path).fix == "data.sources.mine.split=good"
    assert records(path, split="good") == RECORDS
    path.write_text(json.dumps({"data": {"dev": RECORDS, "test": [{"text": "no"}]}}))
    assert "no split 'train'" in refusal(path).found
    assert records(path, split="validation") == RECORDS
    for record in ({"a": [{"b": 1}], "c": [{"d": 2}]}, {"doc": {"paragraphs": [{"text": "part"}]}}):
        path.write_text(json.dumps(record))
        assert records(path) == [record], "one record, whose fields are not known"


def test_lists_of_messages_are_records(tmp_path: Path) -> None:
    messages = chat("q", "a")["messages"]
    for name, content, expected in (
        ("chats.json", json.dumps([messages, messages], indent=1), [messages] * 2),
        ("chats.jsonl", f"{json.dumps(messages)}\n{json.dumps(messages)}\n", [messages] * 2),
        ("one.json", json.dumps(messages, indent=1), [messages]),
        ("one-record.json", json.dumps({"messages": messages}, indent=1), [{"messages": messages}]),
        ("pairs.jsonl", '[["q", "a"]]\n', [[["q", "a"]]]),
    ):
        (tmp_path / name).write_text(content)
        assert records(tmp_path / name) == expected, name
    (tmp_path / "pretty.json").write_text(PRETTY)
    assert located(tmp_path / "pretty.json")[1][0] == f"{tmp_path}/pretty.json:4"


def test_a_line_that_is_not_a_record_is_found_and_the_others_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "one"}\nbroken\n{"text": "\xff"}\n{"text": "two"}\n')
    found = [record for _, record in read_source("data.sources.mine", SourceConfig(path=str(path)))]
    assert [record.reason if isinstance(record, DataError) else record["text"] for record in found] == [
        "one", "not JSON", "not UTF-8", "two"
    ]  # fmt: skip
    assert pickle.loads(pickle.dumps(found[1])).fix, "workers get these records"
    path.write_bytes(b'{"text": \n{"text": "two"}\n')
    found = [record for _, record in read_source("data.sources.mine", SourceConfig(path=str(path)))]
    assert [isinstance(record, DataError) for record in found] == [True, False], "the first line is damaged"
    csv = tmp_path / "a.csv"
    csv.write_text("text,n\none,1\ntwo\nthree,3\n")
    found = [record for _, record in read_source("data.sources.mine", SourceConfig(path=str(csv)))]
    assert [isinstance(record, DataError) for record in found] == [False, True, False]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.csv", b'text\none\n\xe9\n"two\n\xe8"\nthree\n', ["one", "not UTF-8", "not UTF-8", "three"]),
        ("a.tsv", b"text\tn\none\t1\ntw\xe9\t2\n\xc3\xa9\t3\n", ["one", "not UTF-8", "é"]),
        ("a.csv", b'text,n\n"one"x,1\ntwo,2\n', ["not CSV", "two"]),
        ("a.csv", b'text,n\n\none,1\n"two,2\nthree,3\n', ["one", "not CSV", "not CSV"]),
        ("a.csv", b'text,n\n"on\xe9,1\n"two",2\nthree,3\n', ["not CSV", "not CSV", "three"]),
        ("a.json", b'[{"text": "one"},\n{"text": "\xe9"},\n{"text": "two"}]', ["one", "not UTF-8", "two"]),
        ("a.json", b'{"text":\n"one"}\n{"text":\n"\xe9"}\n{"text": "\xc3\xa9"}', ["one", "not UTF-8", "é"]),
        ("a.txt", b"one\n\xe9\n", ["not UTF-8"]),
    ],
)
def test_a_text_that_is_not_utf8_is_a_bad_record_in_every_format(
    name: str, content: bytes, expected: list[str], tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    found = [record for _, record in read_source("data.sources.mine", SourceConfig(path=str(tmp_path / name)))]
    assert [one.reason if isinstance(one, DataError) else one["text"] for one in found] == expected


@pytest.mark.parametrize(
    ("name", "content", "fix"),
    [
        ("a.jsonl", b'{"text": "\xe9"}\n', "iconv -f cp1252 -t utf-8 a.jsonl > utf8-a.jsonl"),
        ("a.jsonl.gz", b'{"text": "\xe9"}\n', "gzip -dc a.jsonl.gz | iconv -f cp1252 -t utf-8 > utf8-a.jsonl"),
        ("a.csv.xz", b"text\n\xe9\n", "xz -dc a.csv.xz | iconv -f cp1252 -t utf-8 > utf8-a.csv"),
        ("a.csv.gz", "text\né".encode("utf-16"), "gzip -dc a.csv.gz | iconv -f utf-16 -t utf-8 > utf8-a.csv"),
        ("a.csv", b"text\n\xe9\n", "iconv -f cp1252 -t utf-8 a.csv > utf8-a.csv"),
        ("a.csv", b"\xe9\none\n", "iconv -f cp1252 -t utf-8 a.csv > utf8-a.csv"),
        ("a.csv", b"text,n\none\n", "add the missing fields (they may be empty), or remove the line"),
        ("a.csv", b"text\none,1\n", "put fields that contain the separator in quotation marks"),
        ("a.csv", b'text\none\n"two\nthree\n', "close the quotation mark in line 3"),
        ("a.csv", b'text\n"one\n', "close the quotation mark in line 2"),
        ("a.tsv", b'text\tn\n\n\n"one\t1\ntwo\t2\n', "close the quotation mark in line 4"),
        ("a.csv", b'text,n\n"one,1\n"two",2\n', "close the quotation mark in line 2, or write"),
        ("a.csv", b'"text\none\n', "close the quotation mark in line 1"),
        ("a.jsonl", b'{"text": "\x93one\x94 \xe9"}\n', "iconv -f cp1252 -t utf-8 a.jsonl > utf8-a.jsonl"),
        ("a.jsonl", b'{"text": "\x81\x40"}\n', "convert the file to UTF-8 from its encoding"),
        ("a.jsonl", '{"text": "é"}'.encode("utf-16be"), "iconv -f utf-16be -t utf-8 a.jsonl > utf8-a.jsonl"),
        ("a.txt", "日本語\nの文\n章".encode("utf-16le"), "iconv -f utf-16le -t utf-8 a.txt > utf8-a.txt"),
        (
            "a.csv.gz",
            "文章\n日本語\n".encode("utf-16be"),
            "gzip -dc a.csv.gz | iconv -f utf-16be -t utf-8 > utf8-a.csv",
        ),
        ("a.csv", "text\none\n".encode("utf-32le"), "iconv -f utf-32le -t utf-8 a.csv > utf8-a.csv"),
    ],
)
def test_the_fix_of_an_invalid_file_works_on_this_file(
    name: str, content: bytes, fix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write = {".gz": gzip.compress, ".xz": lzma.compress}.get(Path(name).suffix, bytes)
    (tmp_path / name).write_bytes(write(content))
    assert fix in refusal(tmp_path / name).fix
    if "iconv" in fix:
        subprocess.run(fix, shell=True, check=True)
        [record] = records(tmp_path / f"utf8-{name.removesuffix('.gz').removesuffix('.xz')}")
        assert not re.search("[\x00\x80-\x9f]", str(record)), "text in Windows-1252 has no control characters"
    elif line := re.match(r"close the quotation mark in line (\d+)", fix):
        lines = content.decode().splitlines()
        lines[int(line[1]) - 1] = re.sub(r'"(\w+)', r'"\1"', lines[int(line[1]) - 1])
        (tmp_path / name).write_text("\n".join(lines))
        records(tmp_path / name)


def test_a_zero_byte_alone_does_not_mean_utf16(tmp_path: Path) -> None:
    (tmp_path / "b.csv").write_bytes(b"text\n\xe9\ne\0e\nthree\n")
    assert "b.csv:2 is not UTF-8" in refusal(tmp_path / "b.csv").found
    (tmp_path / "a.csv").write_bytes("text\n\0n\0é, one and two and three\n".replace(", ", " ").encode())
    assert records(tmp_path / "a.csv") == [{"text": "\0n\0é one and two and three"}]


def test_nulls_that_arrow_adds_to_structs_are_removed(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    calls = [{"name": "f", "arguments": {"x": 1}}, {"name": "g", "arguments": {"y": "z"}}]
    chats = [
        {"messages": [{"role": "assistant", "tool_calls": [call]}, {"role": "user", "content": "q"}]} for call in calls
    ]
    parquet.write_table(pyarrow.Table.from_pylist([*chats, {"messages": None}]), tmp_path / "a.parquet")
    assert records(tmp_path / "a.parquet") == [*chats, {}]


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
