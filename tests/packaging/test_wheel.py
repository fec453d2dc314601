"""The wheel, built from the sdist and installed into a clean environment, works in an empty folder."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path, PurePosixPath

import pytest

from ftdist.run.rundir import RunDir
from tests.helpers.runs import SMOKE, finished_run

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {"ftdist": "ftdist", "launch": "ftdist/launch", "conf": "ftdist/conf", "slurm": "ftdist/slurm"}
JUNK = shutil.ignore_patterns("__pycache__", "*.pyc")


def run(*command: str | Path, cwd: Path, **variables: str) -> str:
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(command, cwd=cwd, env=environment | variables, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the checkout, because a build writes into its source folder."""
    copy = tmp_path_factory.mktemp("checkout")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, copy / folder, ignore=JUNK)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope="module")
def wheel(checkout: Path) -> Path:
    run(sys.executable, "-m", "build", "--no-isolation", ".", cwd=checkout)  # the sdist, and the wheel from it
    (path,) = (checkout / "dist").glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the scripts folder of an environment that contains the wheel and uses the libraries of this one.

    A .pth file adds this environment's site-packages to the end of the path. The .pth files there, such as that of an
    editable ftdist, have no effect.
    """
    home = tmp_path_factory.mktemp("clean environment")
    venv.create(home, with_pip=False, symlinks=True)
    python = home / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-index", "--no-deps", wheel, cwd=home)
    (site,) = (home / "lib").glob("python*/site-packages")
    borrowed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site / "borrowed.pth").write_text("\n".join(borrowed) + "\n")
    return home / "bin"


def test_the_wheel_holds_the_checkout(checkout: Path, wheel: Path) -> None:
    expected = {
        str(PurePosixPath(inside, path.relative_to(checkout / folder).as_posix()))
        for folder, inside in FOLDERS.items()
        for path in (checkout / folder).rglob("*")
        if path.is_file()
    }
    names = set(zipfile.ZipFile(wheel).namelist())
    found = {name for name in names if ".dist-info/" not in name}
    assert not expected - found, "left out of the wheel: see [tool.setuptools] in pyproject.toml"
    assert not found - expected, "the wheel may contain only the four folders"
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_nothing_leaks_in_from_the_checkout(installed: Path, tmp_path: Path) -> None:
    modules = "ftdist", "ftdist.launch", "ftdist.conf", "ftdist.slurm"
    code = f"import {', '.join(modules)}\nfor m in ({', '.join(modules)}): print(m.__file__)"
    files = run(installed / "python", "-c", code, cwd=tmp_path).splitlines()
    assert len(files) == len(modules)
    assert all(file.startswith(str(installed.parent)) for file in files), files


def test_help_and_config_work_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    assert "train" in run(installed / "ftdist", "--help", cwd=tmp_path)
    assert "train" in run(installed / "python", "-m", "ftdist", "--help", cwd=tmp_path)
    from_wheel = run(installed / "ftdist", "train", "experiment=smoke", "--cfg", "job", cwd=tmp_path)
    assert "max_seq_len" in from_wheel
    assert from_wheel == run(sys.executable, "-m", "ftdist", "train", "experiment=smoke", "--cfg", "job", cwd=tmp_path)
    assert not list(tmp_path.iterdir()), "help and --cfg write nothing"


def test_the_wheel_trains_like_the_checkout(installed: Path, tmp_path: Path) -> None:
    run(installed / "python", "-m", "ftdist", "train", *SMOKE, f"run_dir={tmp_path / 'wheel'}", cwd=tmp_path)
    found, expected = (
        [record["train/loss"] for record in each.read_metrics() if "train/loss" in record]
        for each in (RunDir(tmp_path / "wheel"), finished_run(*SMOKE))
    )
    assert len(found) == 6
    assert found == expected
