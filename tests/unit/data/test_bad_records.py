"""Bad records stop the preparation, or are dropped, counted and listed."""

import ast
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ftdist.base.errors import DataError
from ftdist.config.schema import RunConfig
from ftdist.data import encode
from ftdist.data.bad_records import MAX_REASONS, BadRecord, BadRecordList
from ftdist.data.prepare import prepare
from ftdist.run.prepared import BAD_RECORDS, copy_bad_records, read_meta
from ftdist.run.sample import print_table
from ftdist.verify.token_checks import read_documents
from tests.unit.data_tools import APPENDS, chat, data_config, document_bytes

GOOD = json.dumps(chat("q", "a"))
EMPTY, SPACE = json.dumps(chat("q", "")), json.dumps(chat("q", " \n"))
REFUSES_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + APPENDS


def config_of(folder: Path, lines: list[str], *overrides: str) -> RunConfig:
    (folder / "a.jsonl").write_text("\n".join(lines) + "\n")
    return data_config(folder, f"data.sources.mine.path={folder}/a.jsonl", "data.bad_records=drop", *overrides)


def listed(folder: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / BAD_RECORDS).read_text().splitlines()]


@pytest.mark.parametrize("workers", [1, 2])
def test_bad_records_are_dropped_counted_and_listed(
    workers: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.jinja").write_text(REFUSES_SYSTEM)
    lines = [*[GOOD] * 40, EMPTY, "broken", SPACE, json.dumps(chat("q", "a", system="s"))]
    config = config_of(tmp_path, lines, f"data.chat_template={tmp_path}/t.jinja", f"data.num_workers={workers}")
    folder = prepare(config)
    meta = read_meta(folder)
    refused = listed(folder)[3]["reason"]
    assert refused == "the chat template cannot render it: no system"
    assert meta["sources"]["mine"]["documents"] == 44
    assert meta["sources"]["mine"]["dropped"] == {
        "bad (an empty answer)": 2, "bad (not JSON)": 1, f"bad ({refused})": 1,
    }  # fmt: skip
    assert len(document_bytes(folder)) == 40
    found = listed(folder)
    assert [(line["source"], line["location"]) for line in found] == [
        ("data.sources.mine", f"{tmp_path}/a.jsonl:{number}") for number in (41, 42, 43, 44)
    ]
    assert [line["reason"] for line in found] == ["an empty answer", "not JSON", "an empty answer", refused]
    assert "no system" in found[3]["error"]
    assert "4 of 44 records of 'mine' are bad and dropped" in meta["warnings"][0]
    print_table(meta, Console(width=300))
    assert "2 bad (an empty answer)" in capsys.readouterr().out
    run = tmp_path / "run"
    run.mkdir()
    copy_bad_records(folder, run)
    assert listed(run) == found
    assert len(read_documents(config)) == 41, "verify drops them too; it renders later"


def test_a_bad_record_stops_the_preparation_by_default(tmp_path: Path) -> None:
    config = config_of(tmp_path, [GOOD, EMPTY], "data.bad_records=stop")
    with pytest.raises(DataError, match=r"a.jsonl:2, message 2 \(assistant\) is empty"):
        prepare(config)
    with pytest.raises(DataError, match="a.jsonl:2"):
        read_documents(config)


def test_too_many_bad_records_stop_the_preparation_with_their_number_by_reason(tmp_path: Path) -> None:
    lines = [*[GOOD] * 17, EMPTY, EMPTY, "broken"]
    with pytest.raises(DataError) as caught:
        prepare(config_of(tmp_path, lines))
    found = caught.value.found
    assert "data.sources.mine: 3 of 20 records are bad (2 an empty answer, 1 not JSON)" in found
    assert f"for example {tmp_path}/a.jsonl:18, message 2" in found
    assert (caught.value.expected, caught.value.fix) == (
        "at most 10% of the records (data.max_bad_share)", "correct the records, or data.max_bad_share=0.15",
    )  # fmt: skip
    assert prepare(config_of(tmp_path, lines, "data.max_bad_share=0.15"))


def test_one_bad_record_of_few_is_allowed_and_no_list_is_written_without_any(tmp_path: Path) -> None:
    assert len(listed(prepare(config_of(tmp_path, [GOOD, EMPTY])))) == 1
    folder = prepare(config_of(tmp_path, [GOOD, GOOD]))
    assert not (folder / BAD_RECORDS).exists()
    copy_bad_records(folder, tmp_path)
    assert not (tmp_path / BAD_RECORDS).exists()


def test_if_all_records_are_bad_the_error_is_that_of_a_record(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        prepare(config_of(tmp_path, ['{"foo": 1}'], "data.max_bad_share=1"))
    assert "1 of 1 record is bad (1 fields that match no known format)" in caught.value.found
    assert "data.sources.NAME.fields" in caught.value.fix


def bad(*reasons: str) -> list[BadRecord]:
    return [BadRecord("a:1", reason, DataError("a:1 is wrong", reason=reason)) for reason in reasons]


def test_a_source_without_a_good_record_stops_early(tmp_path: Path) -> None:
    records: Any = BadRecordList(tmp_path / BAD_RECORDS, 0.1)
    records.add("s", bad(*["x"] * 1000))
    records.check("s", 1001, finished=False)
    records.check("other", 1000, finished=True)
    with pytest.raises(DataError, match="1,000 of 1,000 records are bad"):
        records.check("s", 1000, finished=False)


def test_many_different_reasons_are_counted_together(tmp_path: Path) -> None:
    records = BadRecordList(tmp_path / BAD_RECORDS, 0.1)
    counts = records.add("s", bad(*map(str, range(20)), "3"))
    assert len(counts) == MAX_REASONS + 1
    assert (counts["dropped: bad (3)"], counts["dropped: bad (other)"]) == (2, 12)
    assert len((tmp_path / BAD_RECORDS).read_text().splitlines()) == 21


def test_every_refusal_of_a_record_has_a_fix_and_a_reason_by_which_it_is_counted() -> None:
    found = 0
    for name in ("messages", "records", "fields", "tool_calls", "render", "chat_documents"):
        file = Path(encode.__file__).with_name(f"{name}.py")
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "DataError":
                named = [keyword.arg for keyword in call.keywords]
                assert "reason" in named and (len(call.args) == 3 or "fix" in named), f"{name}.py:{call.lineno}"
                found += 1
    assert found > 30
