"""Start ``ftdist`` as a user does, in a process of its own, and wait for it, signal it or kill it."""

import contextlib
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional

import psutil

from ftdist.run.rundir import RunDir
from tests.helpers.forkserver import forking

FTDIST = [sys.executable, "-m", "ftdist"]
MARK = "FTDIST_E2E"
"""Environment variable that marks every process that a test starts, so that ``left_processes`` finds them."""
TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str
    wall_s: float
    cpu_s: float
    """CPU time of the process and its children. Unlike wall time it does not depend on other load of the machine."""

    @property
    def text(self) -> str:
        return self.out + self.err


def environment(**variables: str) -> Dict[str, str]:
    return {**os.environ, MARK: str(os.getpid()), **variables}


def ftdist(
    *words: str | Path, cwd: Optional[Path] = None, stdin: str = "", command: Optional[List[str]] = None,
    timeout_s: float = TIMEOUT_S, fresh: bool = False, **variables: str,
) -> Done:  # fmt: skip
    """Run ``ftdist WORDS…``, or another command, and wait until it has ended.

    Args:
        fresh: start an interpreter. By default a Python program is forked (see tests/helpers/forkserver.py), and
            ``cpu_s`` does not include the imports of libraries.
    """
    used, started = _cpu_s(), time.monotonic()
    with contextlib.nullcontext() if fresh else forking():
        done = subprocess.run(
            [*(command or FTDIST), *map(str, words)], cwd=cwd, input=stdin, capture_output=True, text=True,
            timeout=timeout_s, env=environment(**variables), start_new_session=True,
        )  # fmt: skip
    return Done(done.returncode, done.stdout, done.stderr, time.monotonic() - started, _cpu_s() - used)


def succeed(*words: str | Path, **how: Any) -> Done:
    """Run ``ftdist WORDS…``, which must exit with 0."""
    done = ftdist(*words, **how)
    assert done.code == 0, f"{words} ended with {done.code}\n{done.text}{_logs(words)}"
    return done


def _logs(words: Any) -> str:
    places = [Path(str(word).removeprefix("run_dir=")) / "logs" for word in words]
    files = sorted(file for place in places if place.is_dir() for file in place.iterdir())
    return "".join(f"--- {file.name}\n{file.read_text(errors='replace')[-3000:]}" for file in files)


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def start(
    *words: str | Path, cwd: Optional[Path] = None, command: Optional[List[str]] = None,
    env: Optional[Mapping[str, str]] = None,
) -> "subprocess.Popen[str]":  # fmt: skip
    """Start ``ftdist WORDS…`` and return at once. Its output is short enough for a pipe that is read at the end."""
    with forking():
        return subprocess.Popen(
            [*(command or FTDIST), *map(str, words)], cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, env=environment() if env is None else env, start_new_session=True,
        )  # fmt: skip


def finish(process: "subprocess.Popen[str]", code: int = 0, timeout_s: float = 900.0) -> str:
    """Wait for a process that must end with ``code``. Returns its output."""
    output, _ = process.communicate(timeout=timeout_s)
    assert process.returncode == code, output
    return output


def wait_until(process: "subprocess.Popen[str]", reached: Callable[[], bool], delay_s: float = 0.0) -> None:
    """Wait until ``reached`` returns True, then ``delay_s`` longer. Fails if the process ends before."""
    deadline = time.monotonic() + TIMEOUT_S
    while not reached():
        assert process.poll() is None, f"ended with {process.returncode} before that\n{process.communicate()[0]}"
        assert time.monotonic() < deadline, "the run did not reach that moment"
        time.sleep(0.01)
    time.sleep(delay_s)


def kill_tree(process: "subprocess.Popen[str]") -> None:
    """Send SIGKILL to the launcher, torchrun, the ranks and their helpers, as when a machine loses power."""
    root = psutil.Process(process.pid)
    tree = [root, *root.children(recursive=True)]
    for member in tree:
        try:
            member.kill()
        except psutil.NoSuchProcess:  # the kernel was faster: it ends ranks whose torchrun is gone
            continue
    process.communicate(timeout=30)
    _, alive = psutil.wait_procs(tree, timeout=20)
    assert not alive


def processes_of(run: RunDir, anywhere: bool = False) -> List[psutil.Process]:
    """Return the living processes that have the run directory as an argument: ranks, their agents, ``ftdist resume``.

    With ``anywhere``, also those that name it inside an argument: ``ftdist train run_dir=…``, ssh and pdsh.
    """
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            words = process.cmdline()
            named = str(run.path) in (" ".join(words) if anywhere else words)
            if named and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def wait_until_gone(run: RunDir, seconds: float = 60.0, anywhere: bool = False) -> None:
    """Fail if a process of a run is still there after ``seconds``."""
    deadline = time.monotonic() + seconds
    while left := processes_of(run, anywhere):
        assert time.monotonic() < deadline, left
        time.sleep(0.2)


def left_processes() -> List[psutil.Process]:
    """Return the living processes that tests of this pytest worker started, whatever their parent is now."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(MARK) == str(os.getpid()):
                found.append(process)
        except psutil.Error:  # gone, a zombie, or not ours
            continue
    return found


def interrupt(process: "subprocess.Popen[str]", number: int = signal.SIGINT) -> Done:
    """Send a signal to the launcher alone and wait until it has ended. Returns its exit code, output and time."""
    started = time.monotonic()
    process.send_signal(number)
    out, _ = process.communicate(timeout=TIMEOUT_S)
    return Done(process.returncode, out, "", time.monotonic() - started, 0.0)
