"""Standard output that may lose its reader (``| head``, a closed terminal), and paths as they are printed. [light]"""

import os
import shlex
from pathlib import Path
from typing import Any, Callable, TextIO

_absolute = False


def show_absolute_paths() -> None:
    """Print absolute paths from now on, because the current folder of this process is not that of its user."""
    global _absolute
    _absolute = True


def shown(path: str | Path) -> str:
    """A path as short as it can be typed from here."""
    if _absolute:
        return os.path.abspath(path)  # noqa: PTH100 - pathlib's absolute() keeps ".."
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def typed(path: str | Path) -> str:
    """The same as a word of a command."""
    return shlex.quote(shown(path))


class Output:
    """A text file that drops what nobody reads any more: the work goes on, and its exit code says how it ended."""

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
        except OSError:
            # For the whole process: what is still buffered would fail again at every later print and at its end.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._file.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
