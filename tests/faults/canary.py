"""A canary: a file that is made where planted code runs, and is not there where it does not."""

import os
import pickle
from pathlib import Path
from typing import Any, Tuple


class Planted:
    """Unpickling one touches the canary."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Tuple[Any, ...]:
        return os.system, (f"touch '{self.canary}'",)


def pickled(canary: Path) -> bytes:
    return pickle.dumps(Planted(canary))


def save_torch(canary: Path, file: Path) -> None:
    """What ``torch.load`` reads, with code in it."""
    import torch

    torch.save({"module": Planted(canary)}, file)


def source(canary: Path) -> str:
    """A Python file that touches the canary when it is imported."""
    return f"import pathlib\npathlib.Path({str(canary)!r}).touch()\n"
