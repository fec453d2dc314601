"""What a killed process has left goes; what a living one writes stays."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from data_tools import chat, data_config, write_jsonl

from ftdist.rests import remove_rests, temporary


@pytest.fixture
def gone() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_only_rests_of_gone_processes_of_this_machine_are_removed(tmp_path: Path, gone: int) -> None:
    node = platform.node()
    kept = [temporary(tmp_path / "export").name, f".export.elsewhere.{gone}", f".exports.{node}.{gone}",
            f".export.{node}.{os.getppid()}", f".export.{node}.x{gone}", "export"]  # fmt: skip
    for name in [*kept, f".export.{node}.{gone}"]:
        (tmp_path / name / "inside").mkdir(parents=True)
    remove_rests(tmp_path / "export")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)


def test_the_next_preparation_removes_what_a_killed_one_left(tmp_path: Path, gone: int) -> None:
    from ftdist.data.prepare import prepare

    config = data_config(tmp_path, f"data.sources.mine.path={write_jsonl(tmp_path / 'a.jsonl', [chat('q', 'a')] * 3)}")
    data = tmp_path / "cache" / "data"
    killed, living = data / f".0123.{platform.node()}.{gone}", data / f".0123.{platform.node()}.{os.getppid()}"
    for folder in (killed, living):
        (folder / "train").mkdir(parents=True)
    folder = prepare(config)
    assert sorted(data.iterdir()) == sorted([living, folder])
