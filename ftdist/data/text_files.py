"""Read the records of JSON files in all common layouts and of plain text files, compressed or not.

A line that is not a record is yielded as a DataError in place of the record, so that ``data.bad_records`` can drop it.
"""

import io
import json
import re
from contextlib import suppress
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Dict, Iterator, List, Optional, Tuple, cast

from ftdist.base.errors import DataError
from ftdist.base.output import quoted_path
from ftdist.base.shell import shell_word
from ftdist.data.fields import is_record
from ftdist.data.messages import ROLE_FIELDS
from ftdist.run.split_names import missing_split, same_split, split_kind

LocatedRecord = Tuple[str, Any]
"""``(location, record)``. The record is a DataError if it could not be read."""
SHOWN_AROUND = 30
"""Number of characters that a message about invalid JSON shows on each side of the error."""
BYTE_ORDER_MARKS = ((b"\xff\xfe\x00\x00", "utf-32"), (b"\x00\x00\xfe\xff", "utf-32"), (b"\xff\xfe", "utf-16"),
                    (b"\xfe\xff", "utf-16"))  # fmt: skip

UNDECODED = re.compile("[\udc80-\udcff]")
"""Bytes that are not UTF-8, as ``surrogateescape`` decodes them."""
NOT_CP1252 = b"\x81\x8d\x8f\x90\x9d"
"""The bytes without a character in Windows-1252. All characters of Latin-1 have the same bytes in Windows-1252."""


def read_json(file: Path, where: str, split: str) -> Iterator[LocatedRecord]:
    """Read a file with one JSON value on each line, one list of records, or values that span several lines.

    Args:
        file: The file.
        where: Name of the source in the config, for messages.
        split: Name of the list that is read, if the file is an object with several lists.

    Raises:
        DataError: The file is not text in UTF-8, cannot be decompressed, or is not JSON as a whole.
    """
    first = True
    for number, line in enumerate(_binary_lines(file), 1):
        location = f"{file}:{number}"
        try:
            text = _decoded(file, number, line)
            if not text.strip():
                continue
            record = json.loads(text.rstrip())
        except DataError as error:
            yield location, error
        except (ValueError, RecursionError) as error:
            if first and _continues(text, error) and not (text[0] == "{" and _has_object_in_second_line(file)):
                yield from _read_values(file, where, split)
                return
            if value := _before_comma(text, error):
                yield from _expanded(file, location, json.loads(value), where, split)
            else:
                yield location, _not_json(location, error, "one JSON object on each line", "correct or remove the line")
        else:
            yield from _expanded(file, location, record, where, split)
        first = False


def _continues(text: str, error: Exception) -> bool:
    """Return whether a line is only the beginning of a JSON value."""
    return isinstance(error, json.JSONDecodeError) and text[:1] in "[{" and error.pos >= len(text.rstrip())


def _before_comma(text: str, error: Exception) -> str:
    """Return the JSON value of a line with a comma at its end (a list without its brackets), or an empty string."""
    if isinstance(error, json.JSONDecodeError) and error.msg == "Extra data" and text[error.pos :].strip() == ",":
        return text[: error.pos]
    return ""


def _has_object_in_second_line(file: Path) -> bool:
    with suppress(ValueError, RecursionError):  # also invalid UTF-8
        return any(isinstance(json.loads(line), dict) for line in islice(_binary_lines(file), 1, 2))
    return False


def _read_values(file: Path, where: str, split: str) -> Iterator[LocatedRecord]:
    """Read JSON values one after another, each of which can span several lines."""
    lines = Lines(file)
    text, decoder = "".join(lines), json.JSONDecoder()
    at, line, counted = 0, 1, 0
    while rest := text[at : at + 1]:
        if rest.isspace() or (rest == "," and at):
            at += 1
            continue
        line, counted = line + text.count("\n", counted, at), at
        try:
            record, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            number = error.lineno if isinstance(error, json.JSONDecodeError) else line
            raise _not_json(f"{file}:{number}", error, "a list of objects, or objects", "correct the file") from error
        for location, one in _expanded(file, f"{file}:{line}", record, where, split):
            if lines.errors and UNDECODED.search(json.dumps(one, ensure_ascii=False)):
                line_error = lines.errors[0]
                found = f"{location} has text that is not UTF-8; the first: {line_error.found}"
                yield location, DataError(found, line_error.expected, line_error.fix, line_error.reason)
            else:
                yield location, one


def _expanded(file: Path, location: str, value: Any, where: str, split: str) -> Iterator[LocatedRecord]:
    """Yield the records in a JSON value. It is a record, a list of records, or an object with such a list."""
    records: Optional[List[Any]] = None
    if isinstance(value, list) and not _is_chat(value):
        records = value
    elif isinstance(value, dict) and not is_record(value):
        lists = _lists_of_records(value)
        named = [name for name in lists if split_kind(name)]
        chosen = [name for name in named or lists if same_split(name, split)]
        chosen = chosen or (list(lists) if len(lists) == 1 and not named else [])
        are_lists = len(lists) > 1 and all(is_record(held[0]) for held in lists.values())  # not fields of one record
        if not chosen and (named or are_lists):
            raise missing_split(where, str(file), split, named or lists)
        records = lists[chosen[0]] if len(chosen) == 1 else None
    if records is None:
        yield location, value
        return
    for number, record in enumerate(records, 1):
        yield f"{location}, record {number}", record


def _lists_of_records(value: Dict[str, Any]) -> Dict[str, List[Any]]:
    """Return the lists of records in an object by name. If it has none but holds one object, return its splits."""
    lists = {name: held for name, held in value.items() if _holds_records(held)}
    objects = [held for held in value.values() if isinstance(held, dict)]
    if lists or len(objects) != 1:
        return lists
    inner = _lists_of_records(objects[0])
    return inner if all(map(split_kind, inner)) else {}


def _is_chat(value: List[Any]) -> bool:
    """Return whether a list is the messages of one chat, not a list of records."""
    return bool(value) and all(
        (isinstance(held, dict) and any(name in held for name in ROLE_FIELDS)) or _is_pair(held) for held in value
    )


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(text, str) for text in value)


def _holds_records(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(record, (dict, list)) for record in value)


def _not_json(location: str, error: Exception, expected: str, fix: str) -> DataError:
    return DataError(f"{location} is not JSON: {_reason(error)}", expected, fix, reason="not JSON")


def _reason(error: Exception) -> str:
    """Describe an error in JSON: what is wrong, in which column, and the text around it."""
    if not isinstance(error, json.JSONDecodeError):
        return str(error)
    column = error.colno - 1
    line = error.doc[error.pos - column :].partition("\n")[0]
    start, end = max(0, column - SHOWN_AROUND), column + SHOWN_AROUND
    around = ("…" if start else "") + line[start:end] + ("…" if end < len(line) else "")
    return f"{error.msg} at column {error.colno}, near {around}"


def read_txt(file: Path, where: str, split: str) -> Iterator[LocatedRecord]:
    """Read a whole file as one document."""
    lines = Lines(file)
    text = "".join(lines)
    if lines.errors:
        yield str(file), lines.errors[0]
    elif text.strip():
        yield str(file), {"text": text}


class Lines:
    """The lines of a UTF-8 file, including their line ends, without a byte order mark.

    A line that is not in UTF-8 is added to ``errors``. Its invalid bytes become characters that no other text has
    (``UNDECODED``), so that the following lines can be read.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.errors: List[DataError] = []

    def __iter__(self) -> Iterator[str]:
        for number, line in enumerate(_binary_lines(self.file), 1):
            try:
                yield _decoded(self.file, number, line)
            except DataError as error:
                self.errors.append(error)
                yield line.decode("utf-8", "surrogateescape")


def _decoded(file: Path, number: int, line: bytes) -> str:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        found = f"byte 0x{line[error.start]:02x} at column {error.start + 1}"
        fix = f"{_converted(file, 'cp1252')} (if the file is in Windows-1252 or Latin-1)"
        if any(ord(byte) - 0xDC00 in NOT_CP1252 for byte in UNDECODED.findall(line.decode("utf-8", "surrogateescape"))):
            fix = "correct the line, or convert the file to UTF-8 from its encoding, which is not Windows-1252"
        raise DataError(
            f"{file}:{number} is not UTF-8: {found}",
            "text in UTF-8",
            fix,
            reason="not UTF-8",
        ) from error
    return text.removeprefix("\ufeff") if number == 1 else text


def _binary_lines(file: Path) -> Iterator[bytes]:
    import lzma
    import zlib

    import pyarrow

    try:
        with _open(file) as opened:
            beginning = list(islice(opened, 8))
            _check_encoding(file, b"".join(beginning)[:4096])
            yield from beginning
            yield from opened
    except (EOFError, zlib.error, lzma.LZMAError, pyarrow.ArrowException) as error:
        raise _damaged(file, error) from error
    except OSError as error:
        if error.errno is None:  # a decompressor, not the file system
            raise _damaged(file, error) from error
        raise


def _damaged(file: Path, error: Exception) -> DataError:
    return DataError(f"{file} cannot be decompressed: {str(error).splitlines()[0]}", f"a complete {file.suffix} file",
                     "copy or download the file again")  # fmt: skip


def _check_encoding(file: Path, beginning: bytes) -> None:
    """Refuse a file in UTF-16 or UTF-32. It is recognized by its byte order mark, or by the zero bytes of its text."""
    encoding = next((name for mark, name in BYTE_ORDER_MARKS if beginning.startswith(mark)), None)
    encoding = encoding or _encoding_with_zeros(beginning)
    if encoding:
        raise DataError(
            f"{file} is in {encoding.upper()}, not in UTF-8",
            "text in UTF-8",
            f"{_converted(file, encoding)}, and use that file",
        )


def _encoding_with_zeros(text: bytes) -> Optional[str]:
    """Recognize UTF-16 and UTF-32 without a byte order mark: letters, spaces and line ends of ASCII have zero bytes.

    Other text can have some zero bytes too. In UTF-16, at least each line end has one.

    Returns:
        The name of the encoding, or None.
    """
    big, little = text[::2].count(0), text[1::2].count(0)
    zeros = big + little
    if zeros > 0.6 * len(text):
        return "utf-32be" if text[0] == 0 else "utf-32le"
    is_utf8 = not UNDECODED.search(text[:-3].decode("utf-8", "surrogateescape"))  # the last character may be cut off
    if max(big, little) <= 3 * min(big, little) or zeros < (len(text) / 8 if is_utf8 else text.count(b"\n")):
        return None
    return "utf-16be" if big > little else "utf-16le"


def _converted(file: Path, encoding: str) -> str:
    """Return a command that converts a file to UTF-8. A compressed file is decompressed first."""
    program = DECOMPRESSORS.get(file.suffix.lower())
    if program is None:
        return f"iconv -f {encoding} -t utf-8 {quoted_path(file)} > {shell_word(f'utf8-{file.name}')}"
    return f"{program} -dc {quoted_path(file)} | iconv -f {encoding} -t utf-8 > {shell_word(f'utf8-{file.stem}')}"


def _open(file: Path) -> BinaryIO:
    """Open a file for reading. A compressed file is decompressed."""
    suffix = file.suffix.lower()
    if suffix == ".zst":
        import pyarrow

        return cast(BinaryIO, io.BufferedReader(pyarrow.CompressedInputStream(str(file), "zstd"), 1 << 20))
    module = {".gz": "gzip", ".bz2": "bz2", ".xz": "lzma"}.get(suffix)
    return cast(BinaryIO, import_module(module).open(file)) if module else file.open("rb")


DECOMPRESSORS = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd"}
