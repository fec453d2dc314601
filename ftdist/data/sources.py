"""Read the records of data sources one by one, each with its location (``file:line``) for error messages."""

from itertools import islice
from pathlib import Path
from typing import Callable, Dict, Iterator, List

from ftdist.base.errors import DataError
from ftdist.config.data import SourceConfig
from ftdist.data.arrow_files import read_arrow, read_parquet, read_saved, without_added_nulls
from ftdist.data.builtin_sources import DEFAULT_FAKE_DOCUMENTS, fake_chats, stdlib_docs
from ftdist.data.csv_files import read_csv
from ftdist.data.text_files import LocatedRecord, read_json, read_txt
from ftdist.run.hub import OFFLINE, told_to_be_offline
from ftdist.run.prepared import GENERAL, GENERAL_TEXTS
from ftdist.run.source_files import data_suffix, is_saved_dataset, source_files


def read_source(config_key: str, source: SourceConfig) -> Iterator[LocatedRecord]:
    """Read the records of a source lazily, always in the same order.

    Args:
        config_key: The key of the source in the config, for example ``data.sources.mine``. It appears in error
            messages, and it is the seed of ``builtin=fake``.

    Returns:
        ``(location, record)``. A line that cannot be read as a record is a DataError instead of the record.

    Raises:
        DataError: A file is missing, empty or invalid as a whole, the split does not exist, or the hub data set cannot
            be read.
    """
    if source.builtin == "fake":
        return fake_chats(config_key, source.max_documents or DEFAULT_FAKE_DOCUMENTS)
    if source.builtin == "stdlib_docs":
        records = stdlib_docs()
    elif source.builtin == GENERAL:
        records = read_json(GENERAL_TEXTS, config_key, source.split)
    elif source.hub:
        records = _read_hub(config_key, source)
    else:
        assert source.path
        records = _read_path(config_key, source.path, source.split)
    return islice(records, source.max_documents)


def _read_path(config_key: str, path: str, split: str) -> Iterator[LocatedRecord]:
    files = source_files(config_key, path, split)
    if is_saved_dataset(Path(path).expanduser()):
        yield from read_saved(config_key, Path(path).expanduser(), split)
        return
    for file in files:
        count = 0
        for located in READERS[data_suffix(file)](file, config_key, split):
            yield located
            count += 1
        if count == 0:
            raise DataError(
                f"{config_key}.path: {file} holds no records", "at least one record", "remove the file or fill it"
            )


def _read_hub(config_key: str, source: SourceConfig) -> Iterator[LocatedRecord]:
    import datasets

    name = f"{source.hub}{f' ({source.subset})' if source.subset else ''}"
    try:
        loaded = datasets.load_dataset(
            source.hub, source.subset, split=source.split, revision=source.revision, streaming=True
        )
        for number, record in enumerate(loaded, 1):
            yield f"{name}: row {number}", without_added_nulls(record)
    except Exception as error:  # no network, no access, wrong name: the first line says which
        said = str(error).strip().splitlines()
        found = f"{config_key}.hub={name}, split {source.split}: {said[0] if said else type(error).__name__}"
        if told_to_be_offline():
            raise DataError(
                f"{found}. It is not prepared in the cache, and {OFFLINE} forbids access to the hub",
                "data that was prepared before with the same settings of the data, the tokenizer and the chat template",
                "run ftdist prepare with these settings on a machine with a network and the same cache_dir",
            ) from error
        raise DataError(
            found,
            "a data set, subset, split and revision that exist and that you have access to",
            f"check {config_key}.hub, .subset, .split, .revision and the network, or use a local file",
        ) from error


READERS: Dict[str, Callable[[Path, str, str], Iterator[LocatedRecord]]] = {
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), read_json),
    **dict.fromkeys((".csv", ".tsv"), read_csv),
    ".txt": read_txt,
    ".parquet": read_parquet,
    ".arrow": read_arrow,
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
