"""Whether a process is alive, and how it ends with its parent (real processes)."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from ftdist.base.process import RANK_CPUS, bind_rank, find_process, is_alive


@pytest.fixture
def zombie() -> Iterator[int]:
    """A child that has ended and that nobody has waited for."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    while psutil.Process(child.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    yield child.pid
    child.wait()


def test_a_zombie_is_dead(zombie: int) -> None:
    assert not is_alive(zombie) and find_process(zombie) is None


def test_a_process_that_has_ended_is_dead() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert not is_alive(child.pid)


@pytest.mark.parametrize("pid", [0, -1, 2**22 + 1, 2**70])
def test_an_impossible_id_belongs_to_no_process(pid: int) -> None:
    assert not is_alive(pid)


def test_a_process_of_another_user_is_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int, number: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    assert is_alive(os.getppid())


def test_a_process_that_started_later_is_another_one() -> None:
    me = psutil.Process()
    assert is_alive(me.pid, started_by=me.create_time()) and not is_alive(me.pid, started_by=me.create_time() - 60)
    found = find_process(me.pid, started_by=me.create_time())
    assert found == me


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has ended")
def test_a_process_ends_with_its_parent() -> None:
    code = "import subprocess, sys, time; from ftdist.base.process import end_with_parent as end; "
    code += "child = subprocess.Popen(['sleep', '60'], preexec_fn=lambda: end(9)); print(child.pid, flush=True); "
    code += "time.sleep(60)"
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert is_alive(child)
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    deadline = time.monotonic() + 10
    while is_alive(child):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_process_gets_a_signal_when_another_one_has_ended() -> None:
    code = "import psutil, signal, sys; from ftdist.base.process import end_with; "
    code += "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7)); end_with(psutil.Process(int(sys.argv[1]))); "
    code += "print(flush=True); signal.pause()"
    other = subprocess.Popen(["sleep", "60"])
    watching = subprocess.Popen([sys.executable, "-c", code, str(other.pid)], stdout=subprocess.PIPE)
    assert watching.stdout is not None and watching.stdout.readline()
    other.kill()  # and it stays a zombie
    watching.communicate(timeout=60)
    other.wait()
    assert watching.returncode == 7


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux binds processes to CPUs")
def test_a_rank_binds_itself_and_its_threads_to_its_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    before, other = os.sched_getaffinity(0), threading.Event()
    thread = threading.Thread(target=other.wait)
    thread.start()
    try:
        for shares, rank in (("", 0), (f"{min(before)}", 1)):
            monkeypatch.setenv(RANK_CPUS, shares)
            bind_rank(rank)
            assert os.sched_getaffinity(0) == before
        monkeypatch.setenv(RANK_CPUS, f"999999;{min(before)}")
        bind_rank(1)
        assert os.sched_getaffinity(0) == os.sched_getaffinity(thread.native_id or 0) == {min(before)}
    finally:
        for task in Path("/proc/self/task").iterdir():
            os.sched_setaffinity(int(task.name), before)
        other.set()
        thread.join()
