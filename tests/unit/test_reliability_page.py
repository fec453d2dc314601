"""docs/reliability.md says what the tests in tests/faults/ prove."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def reliability() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reliability_page", ROOT / "docs" / "reliability.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_of_faults_is_fresh(reliability: ModuleType) -> None:
    assert reliability.PAGE.read_text(encoding="utf-8") == reliability.page(), "run: make docs"


def test_every_test_of_a_fault_has_its_row(reliability: ModuleType) -> None:
    table = reliability.table()
    names = [
        f"{path.stem}::{name}"
        for path in sorted((ROOT / "tests" / "faults").glob("test_*.py"))
        for name in re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert len(names) > 15
    assert [name for name in names if f"`{name}`" not in table] == []
    assert all(table.count(f"`{name}`") == 1 for name in names)
    assert [name for name in re.findall(r"`(test_\w+::\w+)`", table) if name not in names] == []


def test_the_tests_named_for_broken_protections_are_there(reliability: ModuleType) -> None:
    page, files = reliability.page(), {path.stem: path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}
    named = re.findall(r"`(test_\w+)::(test_\w+)`", page)
    assert len(named) > 30
    assert [f"{file}::{name}" for file, name in named if f"def {name}(" not in files[file]] == []
