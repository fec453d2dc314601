"""Rules for every test.

No secret or rank variable of the caller's environment reaches a test, no test reaches the network, no test leaves a
process or a changed environment behind, and the summary names every reason for a skip.
"""

import collections
import contextlib
import gc
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.helpers import cli, ranks
from tests.helpers.reaper import start_reaper

SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|API_KEY|CREDENTIAL|PRIVATE_KEY", re.I)
RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
# By pytest, deepspeed, torch, scikit-learn.
SET_BY_IMPORTS = {
    "PYTEST_CURRENT_TEST",
    "PYTORCH_NVML_BASED_CUDA_CHECK",
    "TORCHINDUCTOR_CACHE_DIR",
    "KMP_DUPLICATE_LIB_OK",
}
SLURM_PACKAGES = "slurmctld slurmd slurm-client munge"
FAST_FOLDER = Path(__file__).parent / "unit"
"""Tests in all other folders are marked ``process``, and so is a unit test that says so itself."""
FAST_LIMIT_S = 120
"""A test without the mark ``process`` fails if it takes longer, so that the fast tier stays fast."""
LEAK_GRACE_S = 5.0

for _name in [name for name in os.environ if SECRET.search(name) or name in RANK_VARIABLES]:
    del os.environ[_name]
# Without bytecode files every process would compile the modules of ftdist: half a second of CPU time each.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
os.environ["PATH"] += ":/usr/local/sbin:/usr/sbin:/sbin"  # Debian's `su` leaves them out; Slurm's daemons are there
# Before any test imports torch. By default each test process would start a thread for each core, and threads that wait
# for one another without a core of their own use several times the CPU time of one thread.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"  # before any test imports huggingface_hub


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests that take minutes")


def pytest_configure(config: pytest.Config) -> None:
    # Several test processes and their ranks share a core. As a batch, each computes longer before another takes over.
    if hasattr(os, "SCHED_BATCH"):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    if not hasattr(config, "workerinput"):  # workers of pytest-xdist inherit the folder
        cache = tempfile.mkdtemp(prefix="ftdist-tests-")
        # What is killed leaves its temporary files: they go with the folder. A short path: sockets lie there.
        Path(cache, "tmp").mkdir()
        os.environ.update(FTDIST_CACHE=f"{cache}/ftdist", HF_HOME=f"{cache}/huggingface",
                          FTDIST_SITE=f"{cache}/site.yaml", TMPDIR=f"{cache}/tmp")  # fmt: skip
        config.add_cleanup(lambda: shutil.rmtree(cache, ignore_errors=True))
    # Each worker has one, too. All of them end by themselves, after this process.
    start_reaper({cli.MARK: str(os.getpid())}, [] if hasattr(config, "workerinput") else [cache])


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Collect the tests (and import libraries) without garbage collections. Later ones leave out what exists then."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def has_gpu() -> bool:
    """Whether there is an NVIDIA GPU, found out without importing torch."""
    try:
        return b"GPU 0" in subprocess.run(["nvidia-smi", "-L"], capture_output=True, timeout=30).stdout
    except (OSError, subprocess.TimeoutExpired):
        return False


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    skips = {}
    if not config.getoption("--slow"):
        skips["slow"] = "slow; run them with: make test ARGS=--slow"
    if not has_gpu():
        skips["gpu"] = "needs a CUDA GPU; on a machine with one: make test ARGS='-m gpu'"
    if not (shutil.which("slurmctld") and shutil.which("munged") and os.geteuid() == 0):
        skips["slurm"] = f"needs root and Slurm; after apt install {SLURM_PACKAGES}: make test ARGS='-m slurm'"
    for item in items:
        if FAST_FOLDER not in item.path.parents:
            item.add_marker("process")
        if not item.get_closest_marker("process"):
            item.add_marker(pytest.mark.timeout(FAST_LIMIT_S))
        for mark, reason in skips.items():
            if item.get_closest_marker(mark):
                item.add_marker(pytest.mark.skip(reason=reason))
    # Long files first and short ones last, so that all workers end at about the same time.
    items.sort(key=lambda item: item.get_closest_marker("process") is None)


def pytest_terminal_summary(terminalreporter) -> None:
    passed = [dict(report.user_properties) for report in terminalreporter.stats.get("passed", [])]
    combinations = sum(properties.get("combinations", 0) for properties in passed)
    if combinations:
        terminalreporter.write_line(f"invariance: {combinations} combinations equal the reference")
    reasons = collections.Counter(
        str(report.longrepr[2]).removeprefix("Skipped: ") for report in terminalreporter.stats.get("skipped", [])
    )
    for reason, count in sorted(reasons.items()):
        terminalreporter.write_line(f"skipped {count}: {reason}")


def _descendants(pid: int) -> Iterator[int]:
    """Iterate over the process ids below a process. psutil would read the files of all processes of the machine."""
    files = list(Path(f"/proc/{pid}/task").glob("*/children"))
    if not files and pid == os.getpid():  # not Linux, or a kernel without these files
        yield from (child.pid for child in psutil.Process().children(recursive=True))
    for file in files:
        with contextlib.suppress(OSError):  # the thread has ended
            for child in map(int, file.read_text().split()):
                yield child
                yield from _descendants(child)


def _children() -> set[psutil.Process]:
    found = set()
    for pid in _descendants(os.getpid()):
        with contextlib.suppress(psutil.Error):  # gone, or a zombie
            process = psutil.Process(pid)
            # Python's own helpers live as long as the interpreter, a cluster's daemons as long as its fixture.
            if not any(name in " ".join(process.cmdline()) for name in ("resource_tracker", "forkserver", "slurmd -D")):
                found.add(process)
    return found


@pytest.fixture(autouse=True)
def restores_the_root_logger() -> Iterator[None]:
    """Undo what a library has set at the root logger. A handler would write to a captured stream that is closed."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture(autouse=True)
def leaves_nothing_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves a process running or an environment variable changed, and clean up after it."""
    ranks.allowed = request.node.get_closest_marker("process") is not None
    variables, processes = dict(os.environ), _children()
    yield
    changed = {
        name
        for name in (os.environ.keys() | variables.keys()) - SET_BY_IMPORTS
        if os.environ.get(name) != variables.get(name)
    }
    for name in changed:
        os.environ.pop(name, None)
        if name in variables:
            os.environ[name] = variables[name]
    started = (_children() - processes) | (set(cli.left_processes()) if ranks.allowed else set())
    ranks.allowed = True  # fixtures of the next module are set up before this one
    _, left = psutil.wait_procs(started, timeout=LEAK_GRACE_S)
    found = [f"{process.pid} {' '.join(process.cmdline())[:200]}" for process in left if process.is_running()]
    for process in left:
        process.kill()
    psutil.wait_procs(left, timeout=LEAK_GRACE_S)
    assert not changed, f"the test left environment variables changed: {sorted(changed)}"
    assert not found, f"the test left processes running: {found}"
