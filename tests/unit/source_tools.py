"""Shared by the tests of data sources: read a source, and check what an error offers."""

import gzip
import shlex
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from ftdist.base.errors import DataError
from ftdist.config.data import SourceConfig
from ftdist.data.sources import read_source

RECORDS = [{"text": "one"}, {"text": "two, and more"}]


def located(path: Path | str, **fields: Any) -> list[tuple[str, Any]]:
    found = list(read_source("data.sources.mine", SourceConfig(path=str(path), **fields)))
    for _, record in found:
        if isinstance(record, DataError):
            raise record
    return found


def records(path: Path | str, **fields: Any) -> list[Any]:
    return [record for _, record in located(path, **fields)]


def refusal(path: Path | str, **fields: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        located(path, **fields)
    return caught.value


def pasted(fix: str) -> list[Any]:
    """Return the records of a source that is set as the fix of a message says, through Hydra's grammar."""
    sources: dict[str, dict[str, str]] = {}
    for override in OverridesParser.create().parse_overrides([word for word in shlex.split(fix) if "=" in word]):
        source, _, field = override.key_or_group.rpartition(".")
        sources.setdefault(source, {})[field] = str(override.value())
    return [record for where, fields in sources.items() for _, record in read_source(where, SourceConfig(**fields))]


def make_folder(folder: Path, names: list[str]) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        content = f'{{"text": "{name}"}}\n'.encode()
        (folder / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return folder
