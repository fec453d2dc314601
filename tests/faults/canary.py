"""A canary: a file that planted code creates if it runs."""

import os
import pickle
from pathlib import Path
from typing import Any, Tuple


class Planted:
    """An object whose unpickling creates the canary."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Tuple[Any, ...]:
        return os.system, (f"touch '{self.canary}'",)


def pickled(canary: Path) -> bytes:
    return pickle.dumps(Planted(canary))


def save_torch(canary: Path, file: Path) -> None:
    """Save a file for ``torch.load`` that contains code."""
    import torch

    torch.save({"module": Planted(canary)}, file)


def source(canary: Path) -> str:
    """Return Python source that creates the canary when it is imported."""
    return f"import pathlib\npathlib.Path({str(canary)!r}).touch()\n"
