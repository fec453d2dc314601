"""What a killed process has left goes; what a living one writes stays."""

import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from ftdist.base.temporary import beside, remove_rests
from tests.unit.data_tools import chat, data_config, write_jsonl

END = "0a1b2c3d"


@pytest.fixture
def gone() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_only_rests_of_gone_processes_of_this_machine_are_removed(tmp_path: Path, gone: int) -> None:
    node = platform.node()
    kept = [beside(tmp_path / "export").name, f".export.elsewhere.{gone}.{END}", f".exports.{node}.{gone}.{END}",
            f".export.{node}.{os.getppid()}.{END}", f".export.{node}.x{gone}.{END}", "export"]  # fmt: skip
    for name in [*kept, f".export.{node}.{gone}.{END}"]:
        (tmp_path / name / "inside").mkdir(parents=True)
    remove_rests(tmp_path / "export")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)


def test_leftovers_of_a_zombie_are_removed(tmp_path: Path) -> None:
    """In a container without an init process, a killed process stays a zombie."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    while psutil.Process(child.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    (tmp_path / f".export.{platform.node()}.{child.pid}.{END}").mkdir()
    remove_rests(tmp_path / "export")
    child.wait()
    assert not list(tmp_path.iterdir())


def test_the_next_preparation_removes_what_a_killed_one_left(tmp_path: Path, gone: int) -> None:
    from ftdist.data.prepare import prepare

    config = data_config(tmp_path, f"data.sources.mine.path={write_jsonl(tmp_path / 'a.jsonl', [chat('q', 'a')] * 3)}")
    data = tmp_path / "cache" / "data"
    killed, living = (data / f".0123.{platform.node()}.{pid}.{END}" for pid in (gone, os.getppid()))
    for folder in (killed, living):
        (folder / "train").mkdir(parents=True)
    folder = prepare(config)
    assert sorted(data.iterdir()) == sorted([living, folder])
