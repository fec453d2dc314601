"""Paths as they are printed."""

from pathlib import Path

import pytest

from ftdist.base import output


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path / "runs")
    monkeypatch.setattr(output, "_absolute", False)
    return tmp_path / "runs"


def test_a_path_is_printed_as_short_as_possible(here: Path) -> None:
    assert output.short_path(here / "a b") == "a b" and output.quoted_path(here / "a b") == "'a b'"
    assert output.short_path(here.parent / "elsewhere") == str(here.parent / "elsewhere")


def test_a_process_in_another_folder_than_its_user_prints_absolute_paths(here: Path) -> None:
    output.show_absolute_paths()
    assert output.short_path(here) == output.short_path(".") == str(here)
    assert output.short_path("a") == str(here / "a")
