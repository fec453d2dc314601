"""A folder of a sweep without trials."""

from pathlib import Path

import pytest

from ftdist.launch.sweeps.folder import SweepDir


@pytest.fixture
def folder(tmp_path: Path) -> SweepDir:
    sweep = SweepDir(tmp_path / "a-sweep")
    sweep.path.mkdir()
    sweep.request.write_text("{}")
    return sweep
