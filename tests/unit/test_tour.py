"""The tour of the code in docs/design.md names every file, with what its docstring says."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tour() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tour_page", ROOT / "docs" / "tour.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tour_names_every_file_once(tour: ModuleType) -> None:
    paths = [path for folder in ("ftdist", "launch") for path in (ROOT / folder).rglob("*.py") if path.stat().st_size]
    named = [file for files in tour.subjects().values() for file in files]
    assert sorted(named) == sorted(str(path.relative_to(ROOT)) for path in paths)


def test_a_file_that_is_not_listed_comes_after_the_files_of_its_folder(
    tour: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = tour.TOUR["One training step"]
    last = [file for file in step if file.startswith("ftdist/method/")][-1]
    monkeypatch.setitem(tour.TOUR, "One training step", [file for file in step if file != "ftdist/method/lora.py"])
    found = tour.subjects()["One training step"]
    assert found[found.index(last) + 1] == "ftdist/method/lora.py"


def test_a_new_folder_must_be_listed(tour: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = {subject: [file for file in files if "/method/" not in file] for subject, files in tour.TOUR.items()}
    monkeypatch.setattr(tour, "TOUR", kept)
    with pytest.raises(ValueError, match="ftdist/method/adapters.py is in a new folder"):
        tour.subjects()


def test_every_file_says_what_it_holds(tour: ModuleType) -> None:
    named = [file for files in tour.subjects().values() for file in files]
    assert [file for file in named if not 20 < len(tour.summary(file)) < 300] == []


def test_the_tour_is_fresh(tour: ModuleType) -> None:
    assert tour.PAGE.read_text(encoding="utf-8") == tour.page(), "run: make docs"
