"""Name the file that set a value in errors about this value."""

import re
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Dict, Iterator, Mapping

from ftdist.base.errors import EXIT_USAGE, FtdistError

_FILES: ContextVar[Dict[str, str]] = ContextVar("_FILES")
"""The file that set each dotted key in the config that was composed last."""
KEY = re.compile(r"(?<![\w./-])[a-z]\w*(?:\.\w+)*(?==)|(?<![\w./-])[a-z]\w*(?:\.\w+)+")
"""A key in a message: ``name=``, ``launch.slurm.time=60``, or ``launch.slurm.options``."""


def remember_files(files: Mapping[str, str]) -> None:
    """Remember which file sets which key. Does nothing outside ``naming_files``."""
    if (remembered := _FILES.get(None)) is not None:
        remembered.clear()
        remembered.update(files)


@contextmanager
def naming_files() -> Iterator[None]:
    """If an error about a value leaves the block, add the name of the file that sets this value."""
    token = _FILES.set({})
    try:
        yield
    except FtdistError as error:
        if error.exit_code == EXIT_USAGE:
            error.found = _with_files(error.found, _FILES.get())
        raise
    finally:
        _FILES.reset(token)


def _with_files(found: str, files: Mapping[str, str]) -> str:
    first, line, rest = found.partition("\n")
    named = {key: files[key] for key in KEY.findall(first) if key in files and files[key] not in first}
    places = ", ".join(f"{key} is set in {file}" for key, file in named.items())
    return f"{first} ({places}){line}{rest}" if places else found
