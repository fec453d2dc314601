"""Read the records of Parquet and Arrow files and of folders that ``datasets.save_to_disk`` wrote."""

from datetime import date, time
from decimal import Decimal
from pathlib import Path
from typing import Any, Iterator

from ftdist.base.errors import DataError
from ftdist.data.text_files import LocatedRecord
from ftdist.run.split_names import missing_split


def read_parquet(file: Path, where: str, split: str) -> Iterator[LocatedRecord]:
    """Read the rows of a Parquet file.

    Raises:
        DataError: It is not a Parquet file.
    """
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(file) as opened:
            yield from _batches(file, opened.iter_batches(batch_size=256))
    except pyarrow.ArrowException as error:
        raise DataError(f"{file} is not Parquet: {str(error).splitlines()[0]}", "a Parquet file",
                        "copy or download the file again, or remove it") from error  # fmt: skip


def read_arrow(file: Path, where: str, split: str) -> Iterator[LocatedRecord]:
    """Read the rows of an Arrow stream or file.

    Raises:
        DataError: It is neither of these.
    """
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
        raise DataError(f"{file} is not Arrow: {str(error).splitlines()[0]}", "an Arrow stream or file",
                        "copy or download the file again, or remove it") from error  # fmt: skip


def _batches(file: Path, batches: Any) -> Iterator[LocatedRecord]:
    row = 0
    for batch in batches:
        for start in range(0, batch.num_rows, 256):
            for record in batch.slice(start, 256).to_pylist(maps_as_pydicts="strict"):
                row += 1
                yield f"{file}: row {row}", without_added_nulls(record)


def read_saved(where: str, folder: Path, split: str) -> Iterator[LocatedRecord]:
    """Read a folder that ``datasets.save_to_disk`` wrote.

    Args:
        where: Name of the source in the config, for messages.
        folder: The folder.
        split: The split that is read, if the folder has splits.

    Raises:
        DataError: The folder cannot be read, has no such split, or holds no records.
    """
    import datasets

    try:
        loaded = datasets.load_from_disk(str(folder))
    except Exception as error:  # damaged files raise many kinds of exceptions
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(f"{where}.path={folder} cannot be read: {said[0][:200]}",
                        "a folder made by datasets.save_to_disk",
                        "copy or save the data set again") from error  # fmt: skip
    if isinstance(loaded, datasets.DatasetDict):
        if split not in loaded:
            raise missing_split(where, str(folder), split, loaded)
        loaded = loaded[split]
    if len(loaded) == 0:
        raise DataError(f"{where}.path={folder} holds no records", "at least one record",
                        "save the data set again, or choose another split")  # fmt: skip
    for number, record in enumerate(loaded, 1):
        yield f"{folder}: row {number}", without_added_nulls(record)


def without_added_nulls(value: Any) -> Any:
    """Return a record without nulls in the objects inside it, and with dates and decimal numbers as JSON has them.

    All values of a column of structs have the same fields. Arrow adds the missing fields as nulls.
    """
    if isinstance(value, dict):
        return {name: without_added_nulls(held) for name, held in value.items() if held is not None}
    if isinstance(value, list):
        return [without_added_nulls(held) for held in value]
    if isinstance(value, (date, time)):
        return value.isoformat()
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    return value
