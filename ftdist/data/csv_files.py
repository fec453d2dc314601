"""Read the records of CSV and TSV files, compressed or not."""

import csv
import re
import sys
from itertools import chain
from pathlib import Path
from typing import Iterator, List, Sequence

from ftdist.base.errors import DataError
from ftdist.data.text_files import Lines, LocatedRecord

DOUBLE_QUOTES = "write a quotation mark in a field twice, and put the field in quotation marks"
UNEXPECTED_END = "unexpected end"
"""Part of what the csv module says about a quotation mark that is not closed."""
OLD_LINE_ENDS = "new-line character seen in unquoted field"
"""Part of what the csv module says about a file in which lines end in carriage returns."""
SEVERAL_ROWS = "several rows in one field"
MIN_ROWS = 3
"""Number of lines of a field that must look like rows before the field is refused. Two can look so by chance."""
THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
"""The comma in a number such as ``1,000``."""


def read_csv(file: Path, where: str, split: str) -> Iterator[LocatedRecord]:
    """Read rows under a header. The separator is the first of comma, semicolon and tab that the header contains.

    Raises:
        DataError: The header cannot be read, or the file cannot be decompressed.
    """
    csv.field_size_limit(sys.maxsize)
    undecoded = Lines(file)
    lines = iter(undecoded)
    header = next(lines, "")
    tabs = file.name.lower().split(".")[-1] == "tsv" or ".tsv." in file.name.lower()
    separator = "\t" if tabs else next((mark for mark in ",;\t" if mark in header), ",")
    taken: List[str] = []
    spaced = header.count(separator) == header.count(f"{separator} ") > 0
    reader = csv.reader(
        _remembered(chain([header], lines), taken), strict=True, delimiter=separator, skipinitialspace=spaced
    )
    columns: List[str] = []
    while True:
        first, problem = reader.line_num + 1, ""
        taken.clear()
        try:
            row = next(reader, None)
        except csv.Error as error:
            row, problem = [], str(error)
        if columns and not problem and _look_like_rows(taken, len(columns), separator, spaced):
            problem = SEVERAL_ROWS
        if problem:
            wrong = _not_csv(file, first, reader.line_num, tabs, problem)
            if not columns:
                raise wrong
            undecoded.errors.clear()
            for number in range(first, reader.line_num + 1):  # each of these lines is lost, so each is counted
                yield f"{file}:{number}", wrong
            continue
        if row is None:
            return
        location = f"{file}:{reader.line_num}"
        if undecoded.errors:
            if not columns:
                raise undecoded.errors[0]
            yield location, undecoded.errors[0]
            undecoded.errors.clear()
        elif not columns:
            columns = [name.strip() for name in row]
            _check_header(location, columns)
        elif row and len(row) != len(columns):
            yield location, _other_columns(location, len(row) > len(columns), columns)
        elif row:  # an empty line is not a row
            yield location, dict(zip(columns, row, strict=True))


def _remembered(lines: Iterator[str], taken: List[str]) -> Iterator[str]:
    """Yield the lines, and append each of them to ``taken``."""
    for line in lines:
        taken.append(line)
        yield line


def _look_like_rows(lines: List[str], num_columns: int, separator: str, spaced: bool) -> bool:
    """Whether the lines of one row are probably several rows, because a quotation mark was not closed.

    Each line has as many separators as the header. In a text of several lines, a line can have that number by chance,
    but then a space follows most of its commas.

    Args:
        lines: The lines of the row.
        num_columns: Number of columns in the header.
        separator: What separates the columns.
        spaced: Whether a space follows each separator in the header.
    """
    if len(lines) < MIN_ROWS or num_columns < 2:
        return False
    mark = re.escape(separator)
    closed = re.compile(rf'(?:^|(?<={mark}))"[^"]*"(?={mark}|$)')
    bare = [THOUSANDS.sub("", closed.sub("", line.rstrip("\r\n"))) for line in lines]
    return all(line.count(separator) == num_columns - 1 and (spaced or f"{separator} " not in line) for line in bare)


def _check_header(location: str, columns: Sequence[str]) -> None:
    twice = next((name for name in columns if name and columns.count(name) > 1), None)
    if twice:
        raise DataError(f"{location}: the header has the column '{twice}' twice", "a name of its own for each column",
                        "rename one of these columns, or remove it")  # fmt: skip


def _other_columns(location: str, has_more: bool, columns: Sequence[str]) -> DataError:
    fix = "put fields that contain the separator in quotation marks" if has_more else (
        "add the missing fields (they may be empty), or remove the line")  # fmt: skip
    return DataError(
        f"{location} has {'more' if has_more else 'fewer'} columns than the header",
        f"the columns {', '.join(columns)}", fix, reason="another number of columns than the header",
    )  # fmt: skip


def _not_csv(file: Path, first: int, last: int, tabs: bool, problem: str) -> DataError:
    """Return the error about the lines of a row that cannot be read.

    Args:
        file: The file.
        first: Number of the first line, from 1.
        last: Number of the last line.
        tabs: The columns are separated by tabs.
        problem: What the csv module says, or ``SEVERAL_ROWS``.
    """
    name = "TSV" if tabs else "CSV"
    location, fix = f"{file}:{first}{f'-{last}' if last > first else ''}", DOUBLE_QUOTES
    if UNEXPECTED_END in problem:  # everything after the quotation mark is one field
        problem = f"a quotation mark is not closed, so lines {first} to {last} are one row" if last > first else (
            "a quotation mark is not closed")  # fmt: skip
        location, fix = f"{file}:{first}", f"close the quotation mark in line {first}"
    elif OLD_LINE_ENDS in problem:
        problem, fix = (
            "its lines end in carriage returns (\\r)",
            "convert the line ends of the file to line feeds (\\n)",
        )
    elif problem == SEVERAL_ROWS:
        problem = (
            f"a quotation mark is closed in line {last} only, and each of lines {first} to {last} looks like a row"
        )
        location = f"{file}:{first}"
        fix = f"close the quotation mark in line {first}, or use a .jsonl file if these lines are one text"
    elif last > first:
        fix = f"close the quotation mark in line {first}, or {DOUBLE_QUOTES}"
    return DataError(f"{location} is not {name}: {problem}", "separated columns under a header", fix,
                     reason=f"not {name}")  # fmt: skip
