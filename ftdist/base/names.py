"""The right name for a misspelt one. [light]"""

import difflib
from pathlib import Path
from typing import Any, Iterable, List


def nearest(word: str, choices: Iterable[str]) -> List[str]:
    """The choices that look most like ``word``, at most three, best first; those far behind the best are left out."""

    def likeness(choice: str) -> float:
        return difflib.SequenceMatcher(None, word.lower(), choice.lower()).ratio()

    ranked = sorted(((likeness(choice), choice) for choice in set(choices)), reverse=True)
    return [choice for score, choice in ranked[:3] if score >= max(0.6, ranked[0][0] - 0.1)]


def near_paths(path: str) -> List[str]:
    """What lies where ``path`` should, under a name like it (suffixes aside): its first missing part replaced."""
    missing = Path(path).expanduser()
    rest: List[str] = []
    while not missing.parent.is_dir():
        if missing == missing.parent:
            return []
        rest.insert(0, missing.name)
        missing = missing.parent
    try:
        entries = sorted(missing.parent.iterdir())
    except OSError:  # not ours to read
        return []
    stems = nearest(missing.stem, [entry.stem for entry in entries])
    found = [entry.joinpath(*rest) for stem in stems for entry in entries if entry.stem == stem]
    return [str(place) for place in found if place.exists()]


def as_typed(value: Any) -> str:
    """A value as it stands on a command line."""
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)
