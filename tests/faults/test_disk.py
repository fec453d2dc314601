"""Disks that are full, fail or vanish during a save; which checkpoints pruning deletes."""

import errno
import os
import shutil
import subprocess
from pathlib import Path
from typing import Iterator, List

import pytest

from ftdist.checkpoint import durable
from ftdist.checkpoint.protocol import find_newest, prune, save_checkpoint, verify_checkpoint, write_checkpoint
from ftdist.run.rundir import PINNED, RunDir
from tests.faults.checkpoints import Alone, contained, contents, flip_one_bit, hashes
from tests.faults.disk import Disk
from tests.faults.table import fault

ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """Return a run with one checkpoint."""
    run = RunDir(tmp_path / "run")
    run.checkpoints.mkdir(parents=True)
    assert write_checkpoint(run, contents(5), Alone()) == ""
    return run


def rests(run: RunDir) -> List[str]:
    return [path.name for path in run.checkpoints.iterdir() if path.name.startswith(".")]


@fault(
    "saving",
    "a full disk, a quota, a read-only file system or an I/O error at any file operation",
    "each error at each operation in turn, once",
    "the save fails with one message; existing files are unchanged; no temporary file is left; the next save succeeds",
)
@pytest.mark.parametrize("error", ERRORS, ids=[errno.errorcode[error] for error in ERRORS])
def test_an_error_at_every_operation(run: RunDir, tmp_path: Path, error: int, monkeypatch: pytest.MonkeyPatch) -> None:
    before, index, said = hashes(run.path), 0, set()
    while True:
        scratch = tmp_path / f"scratch-{index}"
        scratch.mkdir()
        disk = Disk(run.path, scratch, failing=[index], error=error)
        monkeypatch.setattr(durable, "os", disk)
        problem = write_checkpoint(run, contents(10), Alone())
        monkeypatch.undo()
        if index >= len(disk.operations):
            break
        index += 1
        if not problem:  # only the removal of the old one failed, or the folder was in place
            continue
        said.add(problem)
        assert not rests(run)
        if contained(run) == [(5, 0)]:
            assert hashes(run.path) == before
        else:  # the rename succeeded, and only its fsync failed
            assert contained(run) == [(5, 0), (10, 0)] and disk.operations[index - 1].endswith(" checkpoints")
            shutil.rmtree(run.checkpoint(10))
    assert index > 25 and all(os.strerror(error) in text for text in said)
    assert problem == "" and contained(run) == [(5, 0), (10, 0)]


@fault(
    "saving",
    "the disk becomes read-only during a save and stays so",
    "all operations fail, from each one on",
    "as above; the next save that can removes the temporary files",
)
def test_errors_at_all_operations_from_one_on(run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scratch").mkdir()
    for index in range(30):
        monkeypatch.setattr(durable, "os", Disk(run.path, tmp_path / "scratch", -1, range(index, 10**6), errno.EROFS))
        problem = write_checkpoint(run, contents(10), Alone())
        monkeypatch.undo()
        assert problem
        if contained(run)[-1] != (5, 0):
            break  # in place
    assert index > 20
    assert write_checkpoint(run, contents(15), Alone()) == ""
    assert contained(run)[0] == (5, 0) and contained(run)[-1] == (15, 0) and not rests(run)


@fault(
    "saving",
    "the folder of the checkpoints, or the run directory, vanishes",
    "during a save; before one",
    "that save fails; the next one makes the folder of checkpoints again, but never the run directory",
)
def test_a_save_after_the_folder_has_vanished(run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scratch").mkdir()
    disk = Disk(run.path, tmp_path / "scratch", stop_at=6, stop=lambda: run.checkpoints.rename(tmp_path / "away"))
    disk.goes_on = True
    monkeypatch.setattr(durable, "os", disk)
    assert "No such file or directory" in write_checkpoint(run, contents(10), Alone())
    monkeypatch.undo()
    assert write_checkpoint(run, contents(15), Alone()) == ""
    assert contained(run) == [(15, 0)]
    shutil.rmtree(run.path)
    assert "No such file or directory" in write_checkpoint(run, contents(20), Alone())
    assert not run.path.exists()  # a run directory on an unmounted disk is not made again


@fault(
    "saving",
    "there is no room for the whole checkpoint",
    "a checkpoint of a petabyte",
    "the save writes nothing",
)
def test_a_save_without_room_writes_nothing(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durable, "make_folder", pytest.fail)
    assert "the checkpoint needs 931,322.6 GiB" in write_checkpoint(run, contents(10, size=10**15), Alone())
    assert contained(run) == [(5, 0)]


@fault(
    "pruning",
    "an old checkpoint cannot be deleted",
    "an I/O error when it is renamed, and when it is deleted",
    "one line says so; the new checkpoint is published; the next save deletes the old one",
)
@pytest.mark.parametrize("name", ["rename .gone-step-00000005", "unlink manifest.json"])
def test_an_old_checkpoint_that_cannot_be_deleted(
    run: RunDir, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scratch").mkdir()
    disk = Disk(run.path, tmp_path / "scratch", error=errno.EIO)

    class ByName:
        def __contains__(self, index: int) -> bool:
            return disk.operations[index] == name

    disk._failing = ByName()  # type: ignore[assignment]
    monkeypatch.setattr(durable, "os", disk)
    problem, remark = save_checkpoint(run, contents(10), Alone(), keep=1)
    monkeypatch.undo()
    assert problem == "" and remark.startswith("older checkpoints could not be deleted: Input/output error")
    assert contained(run)[-1] == (10, 0)
    assert save_checkpoint(run, contents(15), Alone(), keep=1) == ("", "")
    assert contained(run) == [(15, 0)] and not rests(run)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a real file system of 256 KiB."""
    place = tmp_path / "small"
    place.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", place]).returncode:
        pytest.skip("needs root and the right to mount a tmpfs")
    yield place
    subprocess.run(["umount", place], check=True)


@fault(
    "saving",
    "a real file system is full, or is mounted read-only",
    "a tmpfs of 256 KiB (where root may mount one)",
    "as for errors at any operation; without room the save writes nothing",
)
def test_a_real_disk_is_full(small_disk: Path) -> None:
    run = RunDir(small_disk / "run")
    run.checkpoints.mkdir(parents=True)
    assert write_checkpoint(run, contents(5), Alone()) == ""
    before = hashes(run.path)
    (small_disk / "ballast").write_bytes(bytes(200 * 1024))
    assert "the checkpoint needs 0.1 MiB" in write_checkpoint(run, contents(10, size=100_000), Alone())
    assert "No space left on device" in write_checkpoint(run, contents(10, length=100_000, size=0), Alone())
    assert hashes(run.path) == before and not rests(run)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    assert "Read-only file system" in write_checkpoint(run, contents(10), Alone())
    assert find_newest(run, Alone(), pytest.fail) == run.checkpoint(5)
    subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
    (small_disk / "ballast").unlink()
    assert write_checkpoint(run, contents(10), Alone()) == ""
    assert contained(run) == [(5, 0), (10, 0)]


@fault(
    "saving",
    "somebody has planted a link with the name of a file to be written",
    "a symbolic link in the temporary folder",
    "it is not followed: the save fails",
)
def test_a_planted_link_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "rank-00000.safetensors").symlink_to(victim)
    with pytest.raises(OSError, match="File exists"):
        durable.write_file(tmp_path / "rank-00000.safetensors", [b"theirs"])
    assert victim.read_text() == "mine"


@fault(
    "pruning",
    "more checkpoints than train.keep_checkpoints",
    "seven, of which one is the best and two are pinned",
    "the newest ones, the best one and the pinned ones are kept",
)
def test_pruning_keeps_the_newest_the_best_and_the_pinned(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.checkpoints.mkdir()
    for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0), (4, None), (5, None), (6, None), (7, 2.0)):
        write_checkpoint(run, contents(step, eval_loss=loss), Alone())
    for step in (1, 4):
        (run.checkpoint(step) / PINNED).touch()
    prune(run, 7, keep=2)
    assert [step for step, _ in contained(run)] == [1, 2, 4, 6, 7]
    assert not rests(run)
    prune(run, 7, keep=100)
    assert len(contained(run)) == 5
    (run.checkpoint(4) / PINNED).unlink()
    prune(run, 7, keep=1)
    assert [step for step, _ in contained(run)] == [1, 2, 7]


@fault(
    "pruning",
    "checkpoints that were saved only because of a stop",
    "several between scheduled checkpoints",
    "the newest of them is kept until the next scheduled one; none replaces a scheduled one",
)
def test_checkpoints_of_stops_do_not_replace_due_ones(run: RunDir) -> None:
    for step, due, left in ((6, False, [5, 6]), (7, False, [5, 7]), (10, True, [10]), (11, False, [10, 11])):
        assert save_checkpoint(run, contents(step, due=due), Alone(), keep=1) == ("", "")
        assert [step for step, _ in contained(run)] == left
    assert find_newest(run, Alone(), pytest.fail) == run.checkpoint(11)
    assert find_newest(run, Alone(), pytest.fail, due=True) == run.checkpoint(10)
    shutil.rmtree(run.checkpoint(10))
    assert find_newest(run, Alone(), pytest.fail, due=True) == run.checkpoint(11)


@fault(
    "pruning",
    "a damaged checkpoint could not be set aside",
    "a bit is flipped in the newest one; EROFS",
    "it is not counted: the next checkpoint is kept until the damaged step is saved again",
)
def test_a_bad_checkpoint_that_cannot_be_moved_replaces_no_good_one(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(run, contents(10), Alone())
    flip_one_bit(run.checkpoint(10) / "state.json")
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(durable, "os", Disk(run.path, tmp_path / "scratch", failing=range(100), error=errno.EROFS))
    notes: List[str] = []
    assert find_newest(run, Alone(), notes.append) == run.checkpoint(5) and "It cannot be renamed (" in notes[0]
    monkeypatch.undo()
    assert save_checkpoint(run, contents(6), Alone(), keep=1) == ("", "")
    assert verify_checkpoint(run.checkpoint(6)) is None and not run.checkpoint(5).exists()
    assert save_checkpoint(run, contents(10), Alone(), keep=1) == ("", "")
    assert contained(run) == [(10, 0)]


@fault(
    "pruning",
    "the machine fails between the new checkpoint and the deletion of the old one",
    "the order of file operations is checked",
    "nothing is deleted before the new checkpoint is published and on the disk",
)
def test_nothing_is_deleted_before_the_new_one_is_safe(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scratch").mkdir()
    write_checkpoint(run, contents(7), Alone())
    disk = Disk(run.path, tmp_path / "scratch")
    monkeypatch.setattr(durable, "os", disk)
    assert save_checkpoint(run, contents(10), Alone(), keep=1) == ("", "")
    moments = ("fsync manifest.json", "rename step-00000010", "fsync checkpoints", "rename .gone-step-00000005")
    order = [disk.operations.index(name) for name in moments]
    assert order == sorted(order)
    assert disk.operations.index("unlink manifest.json") > order[-1]
