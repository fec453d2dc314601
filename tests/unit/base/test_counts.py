"""Numbers of things in messages."""

import re
from pathlib import Path

import ftdist
import ftdist.launch
from ftdist.base.counts import count

PLURAL = re.compile(
    r"\{(?!count\()[^{}]*\} (ranks|nodes|GPUs|trials|machines|CPUs|layers|questions|weights|tensors|rows)\b"
)
FIXED = ("PREVIEW_DOCUMENTS", "STEPS", "nnodes", "FEW_CPUS", "{old}", "{rows} rows: ", "vocab_rows", "BAD_ROWS")
"""Numbers that are never 1 where they are printed: constants, sizes of an embedding, and several machines."""


def test_the_noun_fits_the_number() -> None:
    assert [count(number, "rank") for number in (0, 1, 2)] == ["0 ranks", "1 rank", "2 ranks"]
    assert count(1, "copy", "copies") == "1 copy" and count(1234, "copy", "copies") == "1,234 copies"


def test_messages_count_with_the_helper() -> None:
    """A text such as ``{ranks} ranks`` prints ``1 ranks``."""
    files = [file for package in (ftdist, ftdist.launch) for file in Path(package.__path__[0]).rglob("*.py")]
    found = [f"{file.name}: {line.strip()}" for file in files for line in file.read_text().splitlines()
             if PLURAL.search(line) and not any(word in line for word in FIXED)]  # fmt: skip
    assert files and not found, "\n".join(found)
