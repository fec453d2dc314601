"""Text files of every layout, and the errors about invalid ones."""

import gzip
import json
import lzma
import pickle
import re
import subprocess
from pathlib import Path

import pytest

from ftdist.base.errors import DataError
from ftdist.config.data import SourceConfig
from ftdist.data.sources import read_source
from tests.unit.data_tools import chat
from tests.unit.source_tools import RECORDS, located, records, refusal


def test_a_jsonl_record_has_its_line_as_location_and_empty_lines_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('\ufeff{"text": "one"}\n\n{"text": "two"}', encoding="utf-8")
    assert located(path) == [(f"{path}:1", {"text": "one"}), (f"{path}:3", {"text": "two"})]


@pytest.mark.parametrize("content", [json.dumps(RECORDS, indent=1), "\n".join(json.dumps(r) for r in RECORDS)])
def test_a_json_file_is_a_list_or_has_one_object_on_each_line(tmp_path: Path, content: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(content)
    assert [record for _, record in located(path)] == RECORDS


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
    "commas.jsonl": ",\n".join(map(json.dumps, RECORDS)) + ",\n",
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
