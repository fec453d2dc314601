"""The identity of a file is its content, which is read only once."""

import os
from pathlib import Path

import pytest

from ftdist.run import file_hashes
from ftdist.run.file_hashes import FileHashes


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(file_hashes, "RECENT_NS", -(10**9))  # as if the file were old
    monkeypatch.setattr(file_hashes, "_KNOWN", {})
    (file := tmp_path / "file").write_text("one")
    return file


def hashed(cache: Path, file: Path) -> str:
    """Hash a file as a new process would."""
    file_hashes._KNOWN.clear()
    hashes = FileHashes(cache)
    found = hashes.of_all([file])
    hashes.save()
    return found[0]


def test_a_file_is_read_once(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = hashed(tmp_path, file)
    with monkeypatch.context() as patch:
        patch.setattr(file_hashes, "sha256_of", lambda file: pytest.fail("read again"))
        assert hashed(tmp_path, file) == first
    (tmp_path / "hashes.json").write_text("{broken")
    assert hashed(tmp_path, file) == first


def test_an_edit_that_keeps_size_and_time_is_noticed(file: Path, tmp_path: Path) -> None:
    first, stat = hashed(tmp_path, file), file.stat()
    file.write_text("two")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert file.stat().st_mtime_ns == stat.st_mtime_ns and hashed(tmp_path, file) != first


def test_a_file_that_was_touched_or_copied_is_the_same(file: Path, tmp_path: Path) -> None:
    first = hashed(tmp_path, file)
    os.utime(file, (1, 1))
    (copy := tmp_path / "copy").write_text("one")
    assert hashed(tmp_path, file) == hashed(tmp_path, copy) == first


def test_a_cache_that_cannot_be_written_costs_one_reading_in_each_process(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = hashed(nowhere := Path("/proc/nowhere"), file)
    monkeypatch.setattr(file_hashes, "sha256_of", lambda file: pytest.fail("read again"))
    assert FileHashes(nowhere).of(file) == first


def test_a_file_that_has_just_changed_is_read_again(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another change in the same moment would give it the same time."""
    monkeypatch.setattr(file_hashes, "RECENT_NS", 2 * 10**9)
    hashed(tmp_path, file)
    assert not (tmp_path / "hashes.json").exists() and not file_hashes._KNOWN
