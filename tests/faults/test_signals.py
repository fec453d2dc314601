"""A signal at a bad time causes no deadlock, and the resumed run equals the undisturbed one."""

import contextlib
import itertools
import signal
import subprocess
import time
from pathlib import Path
from typing import Callable, Dict, Tuple

import psutil
import pytest

from ftdist.base.errors import EXIT_DONE, EXIT_PREEMPTED
from ftdist.run.rundir import RunDir
from tests.faults.table import fault
from tests.helpers.cli import TIMEOUT_S, kill_tree, start, succeed, wait_until
from tests.helpers.group import ftdist_with_forked_ranks
from tests.helpers.runs import BARE, SMOKE, assert_same, reference_run

Process = subprocess.Popen  # of str
# Long evaluations between short steps, and a checkpoint after each step.
SETTINGS = (*SMOKE, *BARE, "train.max_steps=8", "train.eval_every=2", "train.checkpoint_every=1",
            "data.max_heldout_documents=64", "zero.stage=2")  # fmt: skip


def preparing(run: RunDir, process: Process) -> bool:
    with contextlib.suppress(psutil.Error):
        children = psutil.Process(process.pid).children()
        return any("ftdist.data.main" in child.cmdline() for child in children)
    return False


def loading(run: RunDir, process: Process) -> bool:
    return run.log_file(0, 0).is_file()


def evaluating(run: RunDir, process: Process) -> bool:
    records = run.read_metrics()
    return bool(records) and records[-1]["step"] == 4 and "train/loss" in records[-1]


def saving(run: RunDir, process: Process) -> bool:
    return any(run.checkpoints.glob(".tmp-*"))


MOMENTS: Dict[str, Callable[[RunDir, Process], bool]] = {
    "preparing": preparing, "loading": loading, "evaluating": evaluating, "saving": saving,
}  # fmt: skip
WAYS = ("once", "twice", "and SIGKILL after 2 s")
IN_CI = {("evaluating", "twice"), ("saving", "and SIGKILL after 2 s")}
CASES = [
    pytest.param(*case, marks=() if case in IN_CI else pytest.mark.slow) for case in itertools.product(MOMENTS, WAYS)
]


def _signal(process: Process, way: str) -> int:
    """Send SIGTERM in one of ``WAYS`` and wait for the end. Returns the exit code."""
    process.send_signal(signal.SIGTERM)
    if way == "twice":
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
    if way == "and SIGKILL after 2 s":
        time.sleep(2.0)
        with contextlib.suppress(psutil.NoSuchProcess):
            kill_tree(process)
    process.communicate(timeout=TIMEOUT_S)
    return int(process.returncode)


@pytest.mark.parametrize(("moment", "way"), CASES)
@fault(
    "training",
    "a signal at a bad time",
    "SIGTERM once, twice, and followed by SIGKILL after 2 s; while data is prepared, the "
    "model is loaded, a held-out set is evaluated, a checkpoint is saved",
    "the run ends in time; resumed, it is bit for bit equal to the undisturbed run",
)
def test_a_signal_at_a_bad_time(tmp_path: Path, moment: str, way: str) -> None:
    reference = reference_run(*SETTINGS)
    run = RunDir(tmp_path / "run")
    fresh: Tuple[str, ...] = (f"cache_dir={tmp_path / 'cache'}",) if moment == "preparing" else ()
    process = start("train", *SETTINGS, *fresh, f"run_dir={run.path}", cwd=tmp_path)
    wait_until(process, lambda: MOMENTS[moment](run, process))
    struck = time.monotonic()
    code = _signal(process, way)
    print(f"ended with {code}, {time.monotonic() - struck:.1f} s after the signal")
    assert code != EXIT_DONE
    if moment != "preparing" and way != "and SIGKILL after 2 s":
        assert code == EXIT_PREEMPTED
    if run.config.is_file():
        assert ftdist_with_forked_ranks("resume", run.path) == EXIT_DONE
    else:
        assert moment == "preparing"
        succeed("train", *SETTINGS, *fresh, f"run_dir={run.path}", cwd=tmp_path)
    assert_same(run, reference)
