"""The files of a source: splits in names, and errors whose fix reads the right files."""

from pathlib import Path

import pytest

from ftdist.base.errors import DataError
from ftdist.config.data import SourceConfig
from ftdist.data.sources import read_source
from tests.unit.data_tools import write_jsonl
from tests.unit.source_tools import RECORDS, make_folder, pasted, records, refusal


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
    "a folder whose name is not a split": (["test_generation/train.jsonl", "x/test.jsonl"],
                                           ["test_generation/train.jsonl"]),
    "a word in a name beside a split": (["train.jsonl", "unit_test_generation.jsonl"], ["train.jsonl"]),
}  # fmt: skip


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
    "several kinds, most data": (["a.json", "b.jsonl", "c.jsonl"], "*.jsonl", ["b.jsonl", "c.jsonl"]),
    "several kinds and splits": (["train_1.json", "test.json", "train.jsonl"], "train_1.json", ["train_1.json"]),
    "several kinds in folders": (["train/a.jsonl", "train/bb.json", "test/a.json"], "train/*.json", ["train/bb.json"]),
    "several kinds, several files": (["train-1.json", "train-2.json", "test.json", "train.jsonl"], "train-*.json",
                                     ["train-1.json", "train-2.json"]),
    "several kinds, two endings": (["train.json", "x/train.json.gz", "test.json", "train.txt"], "**/train*.json*",
                                   ["train.json", "x/train.json.gz"]),
    "no common name": (["x_train.json", "train_y.json", "test.json", "train.jsonl"], "train_y.json",
                       ["train_y.json", "x_train.json"]),
    "a word in the middle": (["math.jsonl", "unit_test_generation.jsonl"], "math.jsonl", ["math.jsonl"]),
    "a word at the end": (["a.jsonl", "b.jsonl", "my_test.jsonl"], "a.jsonl", ["a.jsonl", "b.jsonl"]),
    "a folder for tests": (["train/a.jsonl", "test/train.jsonl"], "train/*.jsonl", ["train/a.jsonl"]),
    "*.csv for tests": (["x/train.jsonl", "test/train.jsonl"], "x/*.jsonl", ["x/train.jsonl"]),
    "compressed copies": (["train.jsonl", "train.jsonl.gz", "test.jsonl"], "train.jsonl", ["train.jsonl"]),
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


def test_a_file_with_a_name_for_training_in_a_folder_for_tests_is_refused(tmp_path: Path) -> None:
    error = refusal(make_folder(tmp_path, ["test/train.jsonl", "test/test.jsonl"]))
    assert "the name of test/train.jsonl says that it is for training, but the folder 'test' says" in error.found
    assert error.fix == "rename the folder, or the file"
    assert [record["text"] for record in records(tmp_path / "test")] == ["test/train.jsonl"], (
        "the user named this folder"
    )


def test_two_files_that_differ_only_in_their_suffix_are_refused(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, ["a.jsonl", "a.jsonl.gz", "b.jsonl.gz"])
    for path in (folder, folder / "*.jsonl*"):
        error = refusal(path)
        assert f"reads {folder}/a.jsonl and a.jsonl.gz, which probably hold the same records" in error.found
        assert [record["text"] for record in pasted(error.fix)] == ["a.jsonl", "b.jsonl.gz"]
