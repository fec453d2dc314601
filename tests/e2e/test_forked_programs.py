"""A program that tests fork (tests/helpers/forkserver.py) cannot be told from one that starts an interpreter."""

import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Dict

import pytest

from ftdist.launch.attempt.signals import end_with_launcher
from tests.helpers import forkserver
from tests.helpers.cli import environment, ftdist

FACTS = """
import json, os, resource, signal, subprocess, sys

def facts():
    me = "/proc/self/"
    read = lambda name: open(me + name, "rb").read().decode(errors="replace").split("\\0")
    umask = os.umask(0)
    return {
        "argv": sys.argv, "original": sys.orig_argv, "executable": sys.executable, "path": sys.path,
        "command line": read("cmdline"), "environment": sorted(set(read("environ"))), "variables": dict(os.environ),
        "folder": os.getcwd(), "parent": os.getppid(), "leads its session": os.getsid(0) == os.getpid(),
        "group": os.getpgid(0) == os.getpid(), "name": open(me + "comm").read(), "umask": umask,
        "signals": [str(signal.getsignal(number)) for number in sorted(signal.valid_signals())],
        "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
        "files": [os.path.basename(os.readlink(me + f"fd/{n}")).split(":")[0] for n in range(3)],
        "more files": len(os.listdir(me + "fd")), "cpus": len(os.sched_getaffinity(0)),
        "limits": resource.getrlimit(resource.RLIMIT_NOFILE), "module": __name__, "spec": __spec__.name,
        "ours": sorted(name for name in sys.modules if name.split(".")[0] in ("ftdist", "tests", "pytest", "_pytest")),
        "libraries": "torch" in sys.modules,
        "streams": [(s.encoding, s.errors, s.line_buffering, s.write_through, s.fileno(), s.mode[0])
                    for s in (sys.stdin, sys.stdout, sys.stderr)],
    }

if __name__ == "__main__":
    found = [facts()]
    if sys.argv[1:] == ["twice"]:
        inner = subprocess.run([sys.executable, "-u", "-m", "facts", "a b"], capture_output=True, text=True,
                               env={**os.environ, "RANK": "1", "PYTHONIOENCODING": "latin-1:replace"},
                               start_new_session=True)
        inner = json.loads(inner.stdout)[0]
        inner.pop("libraries")
        assert inner.pop("parent") == os.getpid()
        found.append(inner)
    if sys.argv[1:] == ["fail"]:
        import atexit
        atexit.register(print, "the end")
        raise ValueError("no")
    if sys.argv[1:] == ["wait"]:
        import ctypes, time
        at_end_of_parent = ctypes.c_int()
        ctypes.CDLL(None).prctl(2, ctypes.byref(at_end_of_parent))  # PR_GET_PDEATHSIG
        print("ready", at_end_of_parent.value, "torch" in sys.modules, flush=True)
        time.sleep(60)
    print(json.dumps(found))
    print("something", file=sys.stderr)
    sys.exit(7)
"""
pytestmark = pytest.mark.skipif(not forkserver.possible(), reason="programs cannot be forked here")
COMMAND = [sys.executable, "-m", "facts"]


@pytest.fixture(autouse=True)
def no_signal_is_ignored() -> Iterator[None]:
    """A new interpreter inherits ignored signals, such as those of nohup. A forked program does not."""
    ignored = [number for number in signal.valid_signals() if signal.getsignal(number) is signal.SIG_IGN]
    ignored = [number for number in ignored if number not in (signal.SIGPIPE, signal.SIGXFSZ)]
    for number in ignored:
        signal.signal(number, signal.SIG_DFL)
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("program")
    (folder / "facts.py").write_text(FACTS)
    return folder


def normal(found: Dict[str, Any]) -> Dict[str, Any]:
    """Leave out the folder that setuptools adds to the path when it is imported."""
    return {**found, "path": [path for path in found["path"] if not path.endswith("setuptools/_vendor")]}


def test_a_forked_program_sees_what_a_new_interpreter_sees(folder: Path) -> None:
    seen = []
    for fresh in (False, True):
        done = ftdist("twice", command=COMMAND, cwd=folder, stdin="x", fresh=fresh, FTDIST_SOME="thing")
        assert (done.code, done.err) == (7, "something\n"), done.text
        outer, inner = json.loads(done.out)
        assert outer.pop("parent") == os.getpid()
        assert outer.pop("libraries") is not fresh
        seen.append([normal(outer), normal(inner)])
    for forked, fresh in zip(*seen, strict=True):
        assert {name: forked[name] for name in fresh} == fresh


def test_a_forked_program_fails_as_a_new_interpreter(folder: Path) -> None:
    forked, fresh = (ftdist("fail", command=COMMAND, cwd=folder, fresh=fresh) for fresh in (False, True))
    assert (forked.code, forked.out) == (fresh.code, fresh.out) == (1, "the end\n")
    assert forked.err.splitlines()[-1] == fresh.err.splitlines()[-1] == "ValueError: no"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_a_forked_program(number: int, folder: Path) -> None:
    """Also after its ``preexec_fn`` has run, if that is a function of a module."""
    with forkserver.forking():
        process = subprocess.Popen(
            [*COMMAND, "wait"], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment(),
            start_new_session=True, preexec_fn=end_with_launcher,
        )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline().split() == [b"ready", b"15", b"True"]
    process.send_signal(number)
    assert process.wait(timeout=20) == -number
    process.stdout.close()


def test_a_variable_that_a_library_reads_when_it_is_imported_starts_an_interpreter(folder: Path) -> None:
    for variables, forked in (({"FTDIST_SOME": "thing"}, True), ({"HF_ENDPOINT": "http://127.0.0.1:1"}, False)):
        done = ftdist("once", command=COMMAND, cwd=folder, **variables)
        assert json.loads(done.out)[0]["libraries"] is forked, variables


def test_a_process_that_adopts_orphans_still_does_after_a_program_was_forked() -> None:
    prctl, value, before = ctypes.CDLL(None).prctl, ctypes.c_int(), ctypes.c_int()
    prctl(forkserver.PR_GET_CHILD_SUBREAPER, ctypes.byref(before))
    try:
        for adopts in (1, 0):
            prctl(forkserver.PR_SET_CHILD_SUBREAPER, adopts)
            assert ftdist("--help").code == 0
            prctl(forkserver.PR_GET_CHILD_SUBREAPER, ctypes.byref(value))
            assert value.value == adopts
    finally:
        prctl(forkserver.PR_SET_CHILD_SUBREAPER, before.value)
