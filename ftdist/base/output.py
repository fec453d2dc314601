"""Output whose reader may end first (``| head``, a closed terminal), and paths as they are printed."""

import os
import shlex
from pathlib import Path
from typing import Any, Callable, TextIO

_absolute = False


def show_absolute_paths() -> None:
    """Print absolute paths from now on, because the current folder of this process is not that of its user."""
    global _absolute
    _absolute = True


def short_path(path: str | Path) -> str:
    """Return a path relative to the current folder if it lies inside, else as it is."""
    if _absolute:
        return os.path.abspath(path)  # noqa: PTH100 - pathlib's absolute() keeps ".."
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def quoted_path(path: str | Path) -> str:
    """Return ``short_path``, quoted as one word of a shell command."""
    return shlex.quote(short_path(path))


class PipeSafeOutput:
    """A text file that drops its output after its reader has ended. The program continues and keeps its exit code."""

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
            # Redirect the file descriptor: buffered text would otherwise fail again at every print and at exit.
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._file.fileno())
            os.close(null)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
