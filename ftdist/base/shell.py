"""Words of the shell commands in messages, quoted so that a user can paste them into any terminal."""

import os
import re
import shlex
import sys
from typing import Any, Iterable

HYDRA_FUNCTION = re.compile(r"(choice|range|interval|glob|sort|shuffle|tag|str|int|float|bool|json_str|extend_list)\(")
"""How a function of Hydra's grammar begins."""

IN_DOUBLE_QUOTES = '"$`\\!'
"""Characters that mean something in a shell's double quotes."""


def shell_word(text: str) -> str:
    """Return a text as one word of a shell command.

    Characters that a standard stream would replace, and control characters, are written as bytes: ``$'gr\\303\\266'``.
    bash, zsh and ksh read this form.
    """
    if text.isprintable() and all(_shows(stream, text) for stream in (sys.stdout, sys.stderr)):
        quoted = shlex.quote(text)
        return f'"{text}"' if "'" in text and not set(text) & set(IN_DOUBLE_QUOTES) else quoted
    letters = [chr(byte) if 32 <= byte < 127 and byte not in b"\\'" else f"\\{byte:03o}" for byte in _as_bytes(text)]
    return f"$'{''.join(letters)}'"


def shell_words(words: Iterable[str]) -> str:
    """Return a command of several words."""
    return " ".join(map(shell_word, words))


def override_word(key: str, value: str) -> str:
    """Return ``key=value`` as one word of a shell command that sets ``key`` to exactly this text.

    Hydra would read a text with a comma as a sweep, and one that begins with a bracket as a list.
    """
    special = (
        "," in value or value[:1] in tuple("'\"[{(") or HYDRA_FUNCTION.match(value) or value != value.strip()
        or value.lower() in ("null", "true", "false")
    )  # fmt: skip
    return shell_word(f"{key}={hydra_quoted(value) if special else value}")


def override_list(key: str, values: Iterable[str]) -> str:
    """Return ``key=[value,…]`` as one word of a shell command that sets ``key`` to exactly these texts."""
    return shell_word(f"{key}=[{','.join(map(hydra_quoted, values))}]")


def hydra_quoted(text: str) -> str:
    """Return a text in quotes, which Hydra's grammar reads as the same text."""
    escaped = re.sub(r"(\\*)(')", r"\1\1\\'", text)
    escaped += "\\" * (len(escaped) - len(escaped.rstrip("\\")))
    return f"'{escaped}'"


def _shows(stream: Any, text: str) -> bool:
    try:
        text.encode(getattr(stream, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _as_bytes(text: str) -> bytes:
    """Return the bytes by which the operating system knows a name."""
    try:
        return os.fsencode(text)
    except UnicodeEncodeError:  # the encoding of file names lacks the character
        return text.encode("utf-8", "surrogateescape")
