"""``make bench`` runs, at small sizes. Its figures are not looked at: they depend on the machine."""

import json
import sys
from pathlib import Path

import pytest

from tests.helpers.cli import succeed

ROOT = Path(__file__).parents[2]
BENCHMARKS = ("tax", "methods", "preparation", "startup", "saving")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_writes_its_section(name: str, tmp_path: Path) -> None:
    words = "--only", name, "--quick", "--out", str(tmp_path)
    succeed(*words, command=[sys.executable, str(ROOT / "tests" / "bench" / "main.py")], cwd=ROOT)
    sections = json.loads((tmp_path / "benchmarks.json").read_text())["benchmarks"]
    assert [section["name"] for section in sections] == [name] and sections[0]["rows"]
    assert sections[0]["title"] in (tmp_path / "benchmarks.md").read_text()
