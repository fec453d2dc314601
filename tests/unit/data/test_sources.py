"""Reading of sources: kinds of files, saved data sets and the hub."""

from datetime import date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from ftdist.base.errors import DataError
from ftdist.config.data import SourceConfig
from ftdist.data.sources import chunk_records, read_source
from tests.unit.data_tools import chat, write_jsonl
from tests.unit.source_tools import RECORDS, located, pasted, records, refusal


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


def test_nulls_that_arrow_adds_to_structs_are_removed(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    calls = [{"name": "f", "arguments": {"x": 1}}, {"name": "g", "arguments": {"y": "z"}}]
    chats = [
        {"messages": [{"role": "assistant", "tool_calls": [call]}, {"role": "user", "content": "q"}]} for call in calls
    ]
    parquet.write_table(pyarrow.Table.from_pylist([*chats, {"messages": None}]), tmp_path / "a.parquet")
    assert records(tmp_path / "a.parquet") == [*chats, {}]


def test_dates_and_decimal_numbers_of_arrow_are_as_in_json(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    held = [date(2024, 1, 2), datetime(2024, 1, 2, 3, 4), time(5, 6), Decimal("1.50"), Decimal("2.00")]
    rows = [{"arguments": dict(zip("abcde", held, strict=True))}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    expected = {"a": "2024-01-02", "b": "2024-01-02T03:04:00", "c": "05:06:00", "d": 1.5, "e": 2}
    assert records(tmp_path / "a.parquet") == [{"arguments": expected}]


def test_maps_of_arrow_are_objects(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    kinds = pyarrow.schema([("chat_template_kwargs", pyarrow.map_(pyarrow.string(), pyarrow.string()))])
    expected = [{"chat_template_kwargs": {"enable_thinking": "false"}}]
    parquet.write_table(pyarrow.Table.from_pylist(expected, kinds), tmp_path / "a.parquet")
    assert records(tmp_path / "a.parquet") == expected


def test_a_hub_data_set_that_cannot_be_read_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network, the fix is to prepare it elsewhere."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with pytest.raises(DataError) as caught:
        list(read_source("data.sources.mine", SourceConfig(hub="nobody/nothing")))
    assert "data.sources.mine.hub=nobody/nothing, split train" in caught.value.found
    assert "check data.sources.mine.hub" in caught.value.fix
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError, match="HF_HUB_OFFLINE forbids access to the hub") as caught:
        list(read_source("data.sources.mine", SourceConfig(hub="nobody/nothing")))
    assert caught.value.fix.startswith("run ftdist prepare with these settings")
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
