"""Sources → records, one after the other, each with the place it came from ("file:line")."""

import csv
import json
import sys
from itertools import islice
from pathlib import Path
from typing import Any, Iterator, List, Tuple

from ftdist.base.errors import DataError
from ftdist.config.schema import SourceConfig
from ftdist.data.builtin import DEFAULT_FAKE_DOCUMENTS, fake_chats, stdlib_docs
from ftdist.run.source_files import is_saved_dataset, source_files

SHOWN_AROUND = 30
"""Characters on each side of where JSON is broken."""

Located = Tuple[str, Any]
"""A record and where it was found."""


def read_source(where: str, source: SourceConfig) -> Iterator[Located]:
    """Records of a source in a fixed order, read as they are asked for.

    Args:
        where: the source's place in the config (``data.sources.mine``), for messages and to seed ``fake``.

    Raises:
        DataError: a file is missing, empty or broken (names file and line), or the split does not exist.
    """
    if source.builtin == "fake":
        return fake_chats(where, source.max_documents or DEFAULT_FAKE_DOCUMENTS)
    if source.builtin == "stdlib_docs":
        records = stdlib_docs()
    elif source.hub:
        records = _read_hub(where, source)
    else:
        assert source.path
        records = _read_path(where, source.path, source.split)
    return islice(records, source.max_documents)


def _read_path(where: str, path: str, split: str) -> Iterator[Located]:
    files = source_files(where, path)
    if is_saved_dataset(Path(path).expanduser()):
        yield from _read_saved(where, Path(path).expanduser(), split)
        return
    for file in files:
        count = 0
        for located in READERS[file.suffix.lower()](file):
            yield located
            count += 1
        if count == 0:
            raise DataError(f"{where}.path: {file} holds no records", "at least one", "remove the file or fill it")


def _lines(file: Path) -> Iterator[str]:
    """Lines of UTF-8 text with their line ends; a byte order mark is left out."""
    with file.open("rb") as binary:
        for number, line in enumerate(binary, 1):
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                found = f"byte 0x{line[error.start]:02x} at column {error.start + 1}"
                raise DataError(
                    f"{file}:{number} is not UTF-8: {found}",
                    "text in UTF-8",
                    f"iconv -f latin1 -t utf-8 {file.name} (if it is Latin-1)",
                ) from error
            yield text.removeprefix("\ufeff") if number == 1 else text


def _read_jsonl(file: Path) -> Iterator[Located]:
    for number, line in enumerate(_lines(file), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line.rstrip())
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{file}:{number} is not JSON: {_reason(error)}",
                "one JSON object on each line",
                "mend or remove the line",
            ) from error
        yield f"{file}:{number}", record


def _reason(error: Exception) -> str:
    """What is wrong, at which column, and the text around it."""
    if not isinstance(error, json.JSONDecodeError):
        return str(error)
    column = error.colno - 1
    line = error.doc[error.pos - column :].partition("\n")[0]
    start, end = max(0, column - SHOWN_AROUND), column + SHOWN_AROUND
    around = ("…" if start else "") + line[start:end] + ("…" if end < len(line) else "")
    return f"{error.msg} at column {error.colno}, near {around}"


def _read_json(file: Path) -> Iterator[Located]:
    """A list of records, read whole. One object on each line is read too: many such files are named .json."""
    text = "".join(_lines(file))
    if not text.lstrip().startswith("["):
        yield from _read_jsonl(file)
        return
    try:
        records = json.loads(text)
    except (ValueError, RecursionError) as error:
        line = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise DataError(f"{file}{line} is not JSON: {_reason(error)}", "a list of objects", "mend the file") from error
    for number, record in enumerate(records, 1):
        yield f"{file}: record {number}", record


def _read_csv(file: Path) -> Iterator[Located]:
    csv.field_size_limit(sys.maxsize)
    reader = csv.DictReader(_lines(file), strict=True)
    try:
        for record in reader:
            where = f"{file}:{reader.line_num}"
            if None in record or None in record.values():
                raise DataError(
                    f"{where} has {'more' if None in record else 'fewer'} columns than the header",
                    f"the columns {', '.join(reader.fieldnames or [])}",
                    "quote fields that hold commas",
                )
            yield where, record
    except csv.Error as error:
        raise DataError(
            f"{file}:{reader.line_num} is not CSV: {error}", "comma-separated columns under a header"
        ) from error


def _read_txt(file: Path) -> Iterator[Located]:
    """A file is one document."""
    text = "".join(_lines(file))
    if text.strip():
        yield str(file), {"text": text}


def _read_parquet(file: Path) -> Iterator[Located]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(file) as opened:
            yield from _batches(file, opened.iter_batches(batch_size=256))
    except pyarrow.ArrowException as error:
        raise DataError(f"{file} is not Parquet: {str(error).splitlines()[0]}", "a Parquet file") from error


def _read_arrow(file: Path) -> Iterator[Located]:
    import pyarrow

    try:
        with pyarrow.memory_map(str(file)) as mapped:
            try:
                opened = pyarrow.ipc.open_stream(mapped)  # what `datasets` writes
                batches: Any = iter(opened)
            except pyarrow.ArrowInvalid:
                opened = pyarrow.ipc.open_file(mapped)
                batches = (opened.get_batch(number) for number in range(opened.num_record_batches))
            yield from _batches(file, batches)
    except pyarrow.ArrowException as error:
        raise DataError(f"{file} is not Arrow: {str(error).splitlines()[0]}", "an Arrow stream or file") from error


def _batches(file: Path, batches: Any) -> Iterator[Located]:
    row = 0
    for batch in batches:
        for start in range(0, batch.num_rows, 256):
            for record in batch.slice(start, 256).to_pylist():
                row += 1
                yield f"{file}: row {row}", record


def _read_saved(where: str, folder: Path, split: str) -> Iterator[Located]:
    import datasets

    try:
        loaded = datasets.load_from_disk(str(folder))
    except Exception as error:  # whatever is wrong with its files
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(f"{where}.path={folder} cannot be read: {said[0][:200]}",
                        "a folder made by datasets.save_to_disk") from error  # fmt: skip
    if isinstance(loaded, datasets.DatasetDict):
        if split not in loaded:
            raise DataError(
                f"{where}.path={folder} has no split '{split}'",
                f"one of {', '.join(sorted(loaded))}",
                f"{where}.split={sorted(loaded)[0]}",
            )
        loaded = loaded[split]
    if len(loaded) == 0:
        raise DataError(f"{where}.path={folder} holds no records", "at least one")
    for number, record in enumerate(loaded, 1):
        yield f"{folder}: row {number}", record


def _read_hub(where: str, source: SourceConfig) -> Iterator[Located]:
    import datasets

    name = f"{source.hub}{f' ({source.subset})' if source.subset else ''}"
    try:
        loaded = datasets.load_dataset(
            source.hub, source.subset, split=source.split, revision=source.revision, streaming=True
        )
        for number, record in enumerate(loaded, 1):
            yield f"{name}: row {number}", record
    except Exception as error:  # network, access, names: whatever the hub says, in one line
        said = str(error).strip().splitlines()
        raise DataError(
            f"{where}.hub={name}, split {source.split}: {said[0] if said else type(error).__name__}",
            "a data set, subset, split and revision that exist and that you may read",
            f"check {where}.hub, .subset, .split, .revision and the network; or use a local file",
        ) from error


READERS = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".txt": _read_txt,
    ".parquet": _read_parquet,
    ".arrow": _read_arrow,
}


def chunks(records: Iterator[Located], max_records: int, max_characters: int) -> Iterator[List[Located]]:
    """Group records; a chunk ends early where its strings are long, so that whole books do not pile up in memory."""
    chunk: List[Located] = []
    characters = 0
    for located in records:
        chunk.append(located)
        if isinstance(located[1], dict):
            characters += sum(len(value) for value in located[1].values() if isinstance(value, str))
        if len(chunk) == max_records or characters >= max_characters:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk
