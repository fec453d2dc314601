"""Temporary folders of killed processes are removed, those of running processes are kept."""

import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from ftdist.base.temporary import remove_leftovers, temporary_path
from tests.unit.data_tools import chat, data_config, write_jsonl

END = "0a1b2c3d"


@pytest.fixture
def ended_pid() -> int:
    """Return the ID of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_only_leftovers_of_ended_processes_of_this_machine_are_removed(tmp_path: Path, ended_pid: int) -> None:
    node = platform.node()
    fresh = temporary_path(tmp_path / "export").name
    kept = [fresh, f".export.elsewhere.{ended_pid}.{END}", f".exports.{node}.{ended_pid}.{END}",
            f".export.{node}.{os.getppid()}.{END}", f".export.{node}.x{ended_pid}.{END}", "export"]  # fmt: skip
    for name in [*kept, f".export.{node}.{ended_pid}.{END}"]:
        (tmp_path / name / "inside").mkdir(parents=True)
    remove_leftovers(tmp_path / "export")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)


def test_files_that_were_not_renamed_are_removed_and_the_targets_of_links_are_kept(
    tmp_path: Path, ended_pid: int
) -> None:
    node = platform.node()
    (tmp_path / "status.json").write_text("{}")
    (tmp_path / "folder" / "inside").mkdir(parents=True)
    (tmp_path / f".status.json.{node}.{ended_pid}.{END}").write_text("{")
    (tmp_path / f".status.json.{node}.{os.getppid()}.{END}").write_text("{")
    (tmp_path / f".link.{node}.{ended_pid}.{END}").symlink_to(tmp_path / "folder")
    remove_leftovers(tmp_path / "*")
    kept = [f".status.json.{node}.{os.getppid()}.{END}", "folder", "status.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == kept
    assert (tmp_path / "folder" / "inside").is_dir()


def test_leftovers_of_a_zombie_are_removed(tmp_path: Path) -> None:
    """In a container without an init process, a killed process stays a zombie."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    while psutil.Process(child.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    (tmp_path / f".export.{platform.node()}.{child.pid}.{END}").mkdir()
    remove_leftovers(tmp_path / "export")
    child.wait()
    assert not list(tmp_path.iterdir())


def test_a_preparation_removes_the_leftovers_of_a_killed_one(tmp_path: Path, ended_pid: int) -> None:
    from ftdist.data.prepare import prepare

    config = data_config(tmp_path, f"data.sources.mine.path={write_jsonl(tmp_path / 'a.jsonl', [chat('q', 'a')] * 3)}")
    data = tmp_path / "cache" / "data"
    killed, running = (data / f".0123.{platform.node()}.{pid}.{END}" for pid in (ended_pid, os.getppid()))
    for folder in (killed, running):
        (folder / "train").mkdir(parents=True)
    folder = prepare(config)
    assert sorted(data.iterdir()) == sorted([running, folder])
