"""CSV and TSV files whose quotation marks or columns are damaged."""

from pathlib import Path
from typing import Any

import pytest

from ftdist.base.errors import DataError
from ftdist.config.data import SourceConfig
from ftdist.data.sources import read_source
from tests.unit.source_tools import refusal

ROWS = "".join(f"q{number},a{number}\n" for number in range(4, 40))
OPEN: dict[str, tuple[str, str, list[str]]] = {
    "in the last column": ("a.csv", 'q,a\nq1,"open\nq2,a2\nq3,12"\nq4,a4\n', ["q4"]),
    "in the first column": ("a.csv", 'q,a\n"open,a1\nq2,a2\nq3 12",a3\nq4,a4\n', ["q4"]),
    "much later": ("a.csv", f'q,a\nq1,"open\n{ROWS}q40,12"\nq41,a\n', ["q41"]),
    "beside quoted columns": (
        "a.csv", 'q,n,a\n"x,y",1,"open\nq2,2,a2\nq3,3,12"\nq4,4,a4\n"q 5",5,"a,b"\n', ["q4", "q 5"],
    ),
    "another column": ("a.csv", 'q,n,a\n"open,1,a1\nq2,2,a2\nq3,3 12",a3\nq4,4,a4\n', ["q4"]),
    "tabs": ("a.tsv", 'q\ta\nq1\t"open, of\nq2\ta2, b\nq3\t12"\nq4\ta4\n', ["q4"]),
    "semicolons": ("a.csv", 'q;a\nq1;"open, of\nq2;\nq3;12"\nq4;a4\n', ["q4"]),
    "spaces after all commas": ("a.csv", 'q, a\nq1,"open\nq2, a2\nq3, 12"\nq4, a4\n', ["q4"]),
}  # fmt: skip


def read(folder: Path, name: str, content: str) -> list[Any]:
    (folder / name).write_text(content)
    return [record for _, record in read_source("data.sources.mine", SourceConfig(path=str(folder / name)))]


@pytest.mark.parametrize("kind", OPEN)
def test_rows_that_an_open_quotation_mark_swallows_are_bad_records(kind: str, tmp_path: Path) -> None:
    name, content, expected = OPEN[kind]
    found = read(tmp_path, name, content)
    assert [record["q"] for record in found if isinstance(record, dict)] == expected
    lines = content[: content.index('12"')].count("\n")  # the first one is the header
    assert len([record for record in found if isinstance(record, DataError)]) == lines
    error = refusal(tmp_path / name)
    said = f"{name}:2 is not {name[2:].upper()}: a quotation mark is closed in line {lines + 1} only"
    assert said in error.found
    assert error.fix.startswith("close the quotation mark in line 2, or use a .jsonl file")


def test_spaces_after_the_separators_of_the_header_are_a_style(tmp_path: Path) -> None:
    assert read(tmp_path, "a.csv", 'q, a\none, "two, three"\n') == [{"q": "one", "a": "two, three"}]
    assert read(tmp_path, "a.csv", "q, if any,a \none, 1, 2\n") == [{"q": "one", "if any": " 1", "a": " 2"}]


def test_a_file_with_carriage_returns_alone_is_refused_by_its_line_ends(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"q,a\rone,two\rthree,four\r")
    error = refusal(tmp_path / "a.csv")
    assert r"a.csv:1 is not CSV: its lines end in carriage returns (\r)" in error.found
    assert error.fix == r"convert the line ends of the file to line feeds (\n)"


def test_a_header_with_the_same_column_twice_is_refused(tmp_path: Path) -> None:
    assert read(tmp_path, "a.csv", ",,q\n1,2,x\n") == [{"": "2", "q": "x"}]
    (tmp_path / "a.csv").write_text("q,a,a\n1,2,x\n")
    assert "a.csv:1: the header has the column 'a' twice" in refusal(tmp_path / "a.csv").found


TEXTS = [
    "two lines,\nof which one has a comma, or two",
    "Dear Bob,\nthank you for the letter, the gift\nand all, Tim",
    "1, one\n2, two\n3, three\n4, four",
    "Costs:\n1,000 for it\n2,500 for that\n3,000",
    "x,y\n1,2\n3,4\n5,6",
    "one\ntwo\nthree\nfour",
    "one\n\ntwo,b\nthree,c\n",
]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("columns", ["q,a", "a,q"])
def test_a_text_of_several_lines_is_one_field(text: str, columns: str, tmp_path: Path) -> None:
    row = {"q,a": f'q1,"{text}"', "a,q": f'"{text}",q1'}[columns]
    assert read(tmp_path, "a.csv", f"{columns}\n{row}\nx,y\n")[0] == {"q": "q1", "a": text}
    assert read(tmp_path, "b.csv", f'text\n"{text}"\n')[0] == {"text": text}
