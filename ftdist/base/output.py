"""Output that works on any terminal: replacements for characters, output whose reader has ended, paths in messages."""

import codecs
import errno
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Callable, Optional, TextIO, Tuple, cast

from ftdist.base.shell import shell_word

STAND_INS = {
    "→": "->", "…": "...", "×": "x", "÷": "/", "·": "*", "−": "-", "–": "-", "—": "-", "✓": "+", "✗": "x", "∞": "inf",
    "│": "|", "━": "=", "─": "-", "╸": "=", "╺": "-", "’": "'", "‘": "'", "“": '"', "”": '"', "\xa0": " ", "≤": "<=",
    "≥": ">=", "≈": "~", "•": "*", "°": " deg",
}  # fmt: skip
"""Replacements for characters that the encoding of a stream does not have. Other such characters become question
marks."""
ENCODE_ERRORS = "ftdist.stand_in"
"""Name of the handler of encoding errors that prints ``STAND_INS``."""

READER_ENDED = (errno.EPIPE, errno.ECONNRESET)
"""Errors of a stream that nobody reads any more. Output for it is dropped without a message."""

USER_FOLDER = "FTDIST_USER_FOLDER"
"""Environment variable with the current folder of the user, for a process that runs in another one."""

_folder: Optional[str] = None
_reported = False


def _stand_in(error: UnicodeError) -> Tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end]
    return "".join(STAND_INS.get(character, "?") for character in text), error.end


codecs.register_error(ENCODE_ERRORS, _stand_in)


def accept_any_text() -> None:
    """Make the standard streams of this process accept any text, whatever their encoding is and whoever reads them.

    A stream in ASCII or Latin-1 (``LC_ALL=C``, ``PYTHONIOENCODING``, an old terminal) cannot show some characters, and
    by default Python raises an error when a program prints one of them. Output must not make a program fail. After this
    call, none of these raises an error either: names that are not valid UTF-8, input that the encoding cannot read, a
    reader that ends first (``| head``), a stream that the shell closed (``>&-``).
    """
    for name, errors in (("stdin", "replace"), ("stdout", ENCODE_ERRORS), ("stderr", ENCODE_ERRORS)):
        stream: Any = getattr(sys, name)
        if stream is None:
            stream = _open_null("r" if name == "stdin" else "w")
        if hasattr(stream, "reconfigure"):  # not if a test has replaced it
            stream.reconfigure(errors=errors)
        if name != "stdin" and not isinstance(stream, PipeSafeOutput):
            stream = PipeSafeOutput(stream)
        setattr(sys, name, stream)


def _open_null(mode: str) -> TextIO:
    """Open the null device. It gets the file descriptor of the closed stream, so that child processes inherit it."""
    file = open(os.devnull, mode, encoding="utf-8")  # noqa: PTH123, SIM115 - open until the process ends
    os.set_inheritable(file.fileno(), file.fileno() <= 2)
    return cast(TextIO, file)


def read_config_text() -> str:
    """Return the config that the launcher wrote to the standard input of this program, in UTF-8 on every terminal."""
    return sys.stdin.buffer.read().decode("utf-8")


def show_paths_from(folder: str) -> None:
    """Print paths relative to a folder from now on, because the current folder of this process is not that of its user.

    Args:
        folder: the current folder of the user. Empty if it is not known: paths are then absolute.
    """
    global _folder
    _folder = folder


def short_path(path: str | Path) -> str:
    """Return a path relative to the current folder if it lies inside, otherwise unchanged. See ``show_paths_from``."""
    if _folder is not None:
        path = os.path.abspath(path)  # noqa: PTH100 - pathlib's absolute() keeps ".."
        if not _folder:
            return path
    relative = os.path.relpath(path, _folder)
    return str(path) if relative.startswith("..") else relative


def quoted_path(path: str | Path) -> str:
    """Return ``short_path`` as one word of a shell command. A name such as ``-x`` is not read as an option."""
    short = short_path(path)
    return shell_word(f"./{short}" if short.startswith(("-", "~")) else short)


class PipeSafeOutput:
    """A text file whose errors do not end the program, and do not change its exit code.

    After its reader has ended, the output is dropped. Any other error, such as a full disk, is reported once on
    standard error. What could not be written is dropped, and later output is tried again.
    """

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, text: str) -> int:
        self._try(lambda: self._file.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(self._file.flush)

    def _try(self, act: Callable[[], Any]) -> None:
        try:
            act()
        except OSError as error:
            ended = error.errno in READER_ENDED
            self._drop_buffer(for_ever=ended)
            if not ended:
                _report(error)

    def _drop_buffer(self, for_ever: bool) -> None:
        """Write what is buffered to the null device. It would otherwise fail again at every print and at exit."""
        number = self._file.fileno()
        kept = None if for_ever else os.dup(number)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, number)
        os.close(null)
        if kept is not None:
            with suppress(OSError):
                self._file.flush()
            os.dup2(kept, number)
            os.close(kept)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _report(error: OSError) -> None:
    """Print once on standard error that output is lost. This may fail too, if standard error is on the same disk."""
    global _reported
    if not _reported:
        _reported = True
        with suppress(OSError):
            os.write(2, f"warning: some output cannot be written ({error.strerror}) and is lost\n".encode())
