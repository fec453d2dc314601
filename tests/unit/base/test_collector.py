"""Programs import their modules without garbage collections, and collect garbage afterwards."""

import ast
import gc
from pathlib import Path

import pytest

from ftdist.base.collector import pause_collector, resume_collector

PACKAGE = Path(__file__).resolve().parents[3] / "ftdist"
IMPORT_LITTLE = {"__main__.py", "data/main.py", "model/convert.py", "report/main.py", "serve/chat.py"}
"""Programs that load no large library when they are imported."""


def programs() -> list[str]:
    started = {str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py") if '"__main__":' in path.read_text()}
    return sorted(started - IMPORT_LITTLE)


def test_what_exists_when_collecting_starts_again_is_left_out() -> None:
    assert gc.isenabled()
    frozen = gc.get_freeze_count()
    try:
        pause_collector()
        assert not gc.isenabled()
        kept = [object() for _ in range(1000)]
    finally:
        resume_collector()
    assert gc.isenabled() and gc.get_freeze_count() > frozen and kept
    gc.unfreeze()


@pytest.mark.parametrize("program", programs())
def test_a_program_imports_everything_while_collecting_is_paused(program: str) -> None:
    body = [ast.unparse(part) for part in ast.parse((PACKAGE / program).read_text()).body]
    begin = "if __name__ == '__main__':\n    pause_collector()"
    imports = [number for number, part in enumerate(body) if part.startswith(("import ", "from "))]
    (resumed,) = [number for number, part in enumerate(body) if "resume_collector()" in part]
    first = next(number for number in imports if "ftdist" in body[number])
    assert all(body[number] in ("import os", "import sys", "import threading") for number in imports if number < first)
    assert body[first].startswith("from ftdist.base.collector import") and body[first + 1] == begin
    assert max(imports) < resumed
