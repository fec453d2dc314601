"""Taking a run: exactly one of several launchers and jobs gets it, and the others change nothing."""

import errno
import json
import multiprocessing
import os
import platform
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Optional

import pytest

from ftdist.base.errors import LaunchError
from ftdist.launch.backends.slurm import client, ownership
from ftdist.launch.backends.slurm.ownership import Owner
from ftdist.run.rundir import RunDir

GONE = 2**22 + 1
"""No process has this id."""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    monkeypatch.setattr(client, "jobs_of_user", lambda user: {"7"} if user == os.getuid() else set())
    found = RunDir(tmp_path)
    found.write_status(state="running", attempt=0)
    return found


def put(run: RunDir, number: int, owner: Owner) -> Path:
    path = run.path / f"owner.{number}.json"
    path.write_text(json.dumps(asdict(owner)))
    return path


def mine() -> Owner:
    return ownership.this_process()


def race(run: RunDir, ready: Any, tried: Any, won: Any) -> None:
    ready.wait()
    try:
        ownership.take(run, mine())
        won.put(os.getpid())
    except LaunchError:
        pass
    tried.wait()  # the winner lives until all have tried


@pytest.mark.parametrize("before", ["nobody", "a dead launcher"])
@pytest.mark.thorough
def test_of_many_launchers_one_gets_the_run(before: str, run: RunDir) -> None:
    context, count = multiprocessing.get_context("fork"), 8
    for number in range(5):
        if before != "nobody":
            put(run, 10 * number, Owner(platform.node(), GONE, time.time()))
        ready, tried, won = context.Barrier(count), context.Barrier(count), context.SimpleQueue()
        children = [context.Process(target=race, args=(run, ready, tried, won)) for _ in range(count)]
        for child in children:
            child.start()
        for child in children:
            child.join()
        winner = won.get()
        assert won.empty()
        owner = ownership.current(run)
        assert owner is not None and owner.pid == winner
        assert not list(run.path.glob(".owner*"))


HERE = Owner(platform.node(), GONE, 0.0)


@pytest.mark.parametrize(
    ("other", "age_s", "taker", "refused"),
    [
        (replace(HERE, pid=os.getppid(), time=time.time()), 0, None, "process"),
        (HERE, 0, None, None),  # it is dead
        (replace(HERE, pid=os.getppid(), time=time.time(), ended=True), 0, None, None),
        (replace(HERE, pid=os.getppid(), time=1.0), 0, None, None),  # another process had its id
        (replace(HERE, host="elsewhere"), 0, None, "process .* on elsewhere"),
        (replace(HERE, host="elsewhere"), 2000, None, None),
        (replace(HERE, job="7"), 0, None, "is in use by job 7"),
        (replace(HERE, job="8"), 0, None, None),  # Slurm says that it is over
        (replace(HERE, job="7"), 0, replace(HERE, job="9"), "is in use by job 7"),
        (replace(HERE, job="7"), 0, replace(HERE, job="7", restart=1), None),
        (replace(HERE, job="7", restart=2), 0, replace(HERE, job="7", restart=1), "is in use by job 7"),
        (replace(HERE, pid=os.getppid(), time=time.time(), submits=True), 0, replace(HERE, job="9"), "process"),
    ],
)
def test_who_may_take_a_run(
    other: Owner, age_s: int, taker: Optional[Owner], refused: Optional[str], run: RunDir,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(ownership, "SUBMITTING_S", 0.0)
    path = put(run, 4, other)
    for touched in (path, run.status):
        os.utime(touched, (time.time() - age_s,) * 2)
    before = {path.name: path.read_bytes() for path in run.path.iterdir()}
    if refused:
        with pytest.raises(LaunchError, match=refused):
            ownership.take(run, taker or mine())
        assert {path.name: path.read_bytes() for path in run.path.iterdir()} == before
    else:
        ownership.take(run, taker or mine())
        assert ownership.holds(ownership.current(run), taker or mine())


def test_without_slurm_a_fresh_status_says_that_a_job_has_the_run(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container there is no squeue."""
    monkeypatch.setattr(client, "jobs_of_user", lambda user: None)
    path = put(run, 0, replace(HERE, job="8"))
    with pytest.raises(LaunchError, match="job 8"):
        ownership.take(run, mine())
    run.write_status(state="preempted")
    os.utime(path, (time.time() - 100,) * 2)
    ownership.take(run, mine())


@pytest.mark.parametrize("shown", [True, False], ids=["Slurm shows it", "Slurm hides jobs of other users"])
def test_the_job_of_another_user_has_the_run(shown: bool, run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    other = os.getuid() + 1
    monkeypatch.setattr(ownership, "_user", lambda path: other)
    monkeypatch.setattr(client, "jobs_of_user", lambda user: {"8"} if shown and user == other else set())
    path = put(run, 0, replace(HERE, job="8"))
    with pytest.raises(LaunchError, match="job 8"):
        ownership.take(run, mine())
    for touched in (path, run.status):
        os.utime(touched, (time.time() - 2000,) * 2)
    if shown:
        with pytest.raises(LaunchError, match="job 8"):
            ownership.take(run, mine())
    else:
        ownership.take(run, mine())


def test_a_process_that_read_the_directory_long_ago_does_not_get_the_run(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(run, 0, HERE)
    create = ownership._create

    def late(path: Path, text: str) -> bool:  # in between, three others have had the run, one after the other
        (run.path / "owner.0.json").unlink()
        put(run, 3, replace(HERE, pid=os.getppid(), time=time.time()))
        return create(path, text)

    monkeypatch.setattr(ownership, "_create", late)
    with pytest.raises(LaunchError):
        ownership.take(run, mine())
    assert [path.name for path in run.path.glob("owner*")] == ["owner.3.json"]


@pytest.mark.parametrize("how", ["the answer is lost", "no hard links"])
def test_the_file_is_made_once_on_other_file_systems(how: str, run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.link

    def other_link(source: Path, target: Path) -> None:
        if how == "no hard links":
            raise OSError(errno.EPERM, "not permitted")
        link(source, target)
        raise FileExistsError(errno.EEXIST, "exists")

    monkeypatch.setattr(os, "link", other_link)
    assert ownership._create(run.path / "owner.0.json", "1")
    assert (run.path / "owner.0.json").read_text() == "1"
    monkeypatch.undo()
    monkeypatch.setattr(os, "link", link if how != "no hard links" else other_link)
    assert not ownership._create(run.path / "owner.0.json", "2")


def test_nested_blocks_release_the_run_once(run: RunDir) -> None:
    with ownership.owned(run):
        with ownership.owned(run):
            pass
        assert ownership.holds(ownership.current(run), mine())
    assert not ownership.holds(ownership.current(run), mine())
    with pytest.raises(ValueError, match="boom"), ownership.owned(run):
        raise ValueError("boom")
    assert [path.name for path in sorted(run.path.glob("owner*"))] == ["owner.0.json", "owner.1.json"]
