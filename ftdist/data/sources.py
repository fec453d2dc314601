"""Read the records of data sources one by one, each with its location (``file:line``) for error messages."""

import csv
import json
import sys
from itertools import islice
from pathlib import Path
from typing import Any, Iterator, List, Tuple

from ftdist.base.errors import DataError
from ftdist.config.schema import SourceConfig
from ftdist.data.builtin_sources import DEFAULT_FAKE_DOCUMENTS, fake_chats, stdlib_docs
from ftdist.run.source_files import is_saved_dataset, source_files

SHOWN_AROUND = 30
"""Number of characters that a message about invalid JSON shows on each side of the error."""

LocatedRecord = Tuple[str, Any]
"""``(location, record)``."""


def read_source(config_key: str, source: SourceConfig) -> Iterator[LocatedRecord]:
    """Read the records of a source lazily, always in the same order.

    Args:
        config_key: The key of the source in the config, for example ``data.sources.mine``. It appears in error
            messages, and it is the seed of ``builtin=fake``.

    Raises:
        DataError: A file is missing, empty or invalid (the message names file and line), the split does not exist, or
            the hub data set cannot be read.
    """
    if source.builtin == "fake":
        return fake_chats(config_key, source.max_documents or DEFAULT_FAKE_DOCUMENTS)
    if source.builtin == "stdlib_docs":
        records = stdlib_docs()
    elif source.hub:
        records = _read_hub(config_key, source)
    else:
        assert source.path
        records = _read_path(config_key, source.path, source.split)
    return islice(records, source.max_documents)


def _read_path(config_key: str, path: str, split: str) -> Iterator[LocatedRecord]:
    files = source_files(config_key, path)
    if is_saved_dataset(Path(path).expanduser()):
        yield from _read_saved(config_key, Path(path).expanduser(), split)
        return
    for file in files:
        count = 0
        for located in READERS[file.suffix.lower()](file):
            yield located
            count += 1
        if count == 0:
            raise DataError(
                f"{config_key}.path: {file} holds no records", "at least one record", "remove the file or fill it"
            )


def _lines(file: Path) -> Iterator[str]:
    """Yield the lines of a UTF-8 file, including their line ends, without a byte order mark."""
    with file.open("rb") as binary:
        for number, line in enumerate(binary, 1):
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                found = f"byte 0x{line[error.start]:02x} at column {error.start + 1}"
                raise DataError(
                    f"{file}:{number} is not UTF-8: {found}",
                    "text in UTF-8",
                    f"iconv -f latin1 -t utf-8 {file.name} (if the file is in Latin-1)",
                ) from error
            yield text.removeprefix("\ufeff") if number == 1 else text


def _read_jsonl(file: Path) -> Iterator[LocatedRecord]:
    for number, line in enumerate(_lines(file), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line.rstrip())
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{file}:{number} is not JSON: {_reason(error)}",
                "one JSON object on each line",
                "correct or remove the line",
            ) from error
        yield f"{file}:{number}", record


def _reason(error: Exception) -> str:
    """Describe an error in JSON: what is wrong, in which column, and the text around it."""
    if not isinstance(error, json.JSONDecodeError):
        return str(error)
    column = error.colno - 1
    line = error.doc[error.pos - column :].partition("\n")[0]
    start, end = max(0, column - SHOWN_AROUND), column + SHOWN_AROUND
    around = ("…" if start else "") + line[start:end] + ("…" if end < len(line) else "")
    return f"{error.msg} at column {error.colno}, near {around}"


def _read_json(file: Path) -> Iterator[LocatedRecord]:
    """Read a list of records at once, or one object from each line: many files in that format are named ``.json``."""
    text = "".join(_lines(file))
    if not text.lstrip().startswith("["):
        yield from _read_jsonl(file)
        return
    try:
        records = json.loads(text)
    except (ValueError, RecursionError) as error:
        line = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise DataError(
            f"{file}{line} is not JSON: {_reason(error)}", "a list of objects", "correct the file"
        ) from error
    for number, record in enumerate(records, 1):
        yield f"{file}: record {number}", record


def _read_csv(file: Path) -> Iterator[LocatedRecord]:
    csv.field_size_limit(sys.maxsize)
    reader = csv.DictReader(_lines(file), strict=True)
    try:
        for record in reader:
            location = f"{file}:{reader.line_num}"
            if None in record or None in record.values():
                raise DataError(
                    f"{location} has {'more' if None in record else 'fewer'} columns than the header",
                    f"the columns {', '.join(reader.fieldnames or [])}",
                    "quote the fields that contain commas",
                )
            yield location, record
    except csv.Error as error:
        raise DataError(
            f"{file}:{reader.line_num} is not CSV: {error}", "comma-separated columns under a header"
        ) from error


def _read_txt(file: Path) -> Iterator[LocatedRecord]:
    """Read a whole file as one document."""
    text = "".join(_lines(file))
    if text.strip():
        yield str(file), {"text": text}


def _read_parquet(file: Path) -> Iterator[LocatedRecord]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(file) as opened:
            yield from _batches(file, opened.iter_batches(batch_size=256))
    except pyarrow.ArrowException as error:
        raise DataError(f"{file} is not Parquet: {str(error).splitlines()[0]}", "a Parquet file") from error


def _read_arrow(file: Path) -> Iterator[LocatedRecord]:
    import pyarrow

    try:
        with pyarrow.memory_map(str(file)) as mapped:
            try:
                opened = pyarrow.ipc.open_stream(mapped)  # the format that `datasets` writes
                batches: Any = iter(opened)
            except pyarrow.ArrowInvalid:
                opened = pyarrow.ipc.open_file(mapped)
                batches = (opened.get_batch(number) for number in range(opened.num_record_batches))
            yield from _batches(file, batches)
    except pyarrow.ArrowException as error:
        raise DataError(f"{file} is not Arrow: {str(error).splitlines()[0]}", "an Arrow stream or file") from error


def _batches(file: Path, batches: Any) -> Iterator[LocatedRecord]:
    row = 0
    for batch in batches:
        for start in range(0, batch.num_rows, 256):
            for record in batch.slice(start, 256).to_pylist():
                row += 1
                yield f"{file}: row {row}", record


def _read_saved(config_key: str, folder: Path, split: str) -> Iterator[LocatedRecord]:
    import datasets

    try:
        loaded = datasets.load_from_disk(str(folder))
    except Exception as error:  # damaged files raise many kinds of exceptions
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(f"{config_key}.path={folder} cannot be read: {said[0][:200]}",
                        "a folder made by datasets.save_to_disk") from error  # fmt: skip
    if isinstance(loaded, datasets.DatasetDict):
        if split not in loaded:
            raise DataError(
                f"{config_key}.path={folder} has no split '{split}'",
                f"one of {', '.join(sorted(loaded))}",
                f"{config_key}.split={sorted(loaded)[0]}",
            )
        loaded = loaded[split]
    if len(loaded) == 0:
        raise DataError(f"{config_key}.path={folder} holds no records", "at least one record")
    for number, record in enumerate(loaded, 1):
        yield f"{folder}: row {number}", record


def _read_hub(config_key: str, source: SourceConfig) -> Iterator[LocatedRecord]:
    import datasets

    name = f"{source.hub}{f' ({source.subset})' if source.subset else ''}"
    try:
        loaded = datasets.load_dataset(
            source.hub, source.subset, split=source.split, revision=source.revision, streaming=True
        )
        for number, record in enumerate(loaded, 1):
            yield f"{name}: row {number}", record
    except Exception as error:  # no network, no access, wrong name: the first line says which
        said = str(error).strip().splitlines()
        raise DataError(
            f"{config_key}.hub={name}, split {source.split}: {said[0] if said else type(error).__name__}",
            "a data set, subset, split and revision that exist and that you have access to",
            f"check {config_key}.hub, .subset, .split, .revision and the network, or use a local file",
        ) from error


READERS = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".txt": _read_txt,
    ".parquet": _read_parquet,
    ".arrow": _read_arrow,
}


def chunk_records(
    records: Iterator[LocatedRecord], max_records: int, max_characters: int
) -> Iterator[List[LocatedRecord]]:
    """Group records into chunks of at most ``max_records``.

    A chunk ends earlier when the texts in it have ``max_characters`` characters in total. So long texts do not fill the
    memory.
    """
    chunk: List[LocatedRecord] = []
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
