"""Starting ranks through a real torchrun, and what becomes of the processes however the run ends."""

import json
import os
import platform
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Callable, List

import psutil
import pytest

from ftdist.base.errors import EXIT_DONE, EXIT_PREEMPTED
from ftdist.run.rundir import RunDir

RANK = """
import json, os, signal, sys, time
from pathlib import Path
run, behaviour, rank = Path(sys.argv[1]), sys.argv[2], os.environ["RANK"]
(run / f"pid-{rank}").write_text(str(os.getpid()))
while behaviour in ("error", "killed") and len(list(run.glob("pid-*"))) < 2:  # torchrun would end the other rank
    time.sleep(0.01)
def status(**changes):
    if rank == "0":
        (run / "status.json").write_text(json.dumps(changes))
if behaviour == "done":
    status(state="done")
elif behaviour == "error":
    time.sleep(0 if rank == "1" else 1)
    (run / "logs" / f"rank-0000{rank}.attempt-0.error.json").write_text(
        json.dumps({"rank": int(rank), "time": time.time(), "message": f"boom {rank}", "exit_code": 2}))
    sys.exit(2)
elif behaviour == "killed" and rank == "1":
    os.kill(os.getpid(), signal.SIGKILL)
elif behaviour == "silent":
    sys.exit(0)
else:
    signal.signal(signal.SIGTERM, signal.SIG_IGN) if behaviour == "stubborn" else None
    for _ in range(600):
        if behaviour == "polite" and (run / "preempt").exists():
            status(state="preempted")
            sys.exit(0)
        time.sleep(0.1)
"""

LAUNCHER = """
import sys
from ftdist.config.schema import RunConfig
from ftdist.base.errors import FtdistError
from ftdist.launch.backends import local
from ftdist.run.rundir import RunDir
config = RunConfig()
config.launch.nproc_per_node, config.launch.threads_per_rank = 2, 1
plan = local.plan_local
local.plan_local = lambda config, module, *arguments: plan(config, "standin_rank", arguments[0], sys.argv[2])
try:
    sys.exit(local.LocalBackend().start(config, RunDir(sys.argv[1])))
except FtdistError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(error.exit_code)
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    (tmp_path / "standin_rank.py").write_text(textwrap.dedent(RANK))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    found = RunDir(tmp_path / "run")
    found.logs.mkdir(parents=True)
    found.write_status(state="frozen", attempt=0)
    return found


@pytest.fixture
def launch(run: RunDir) -> Callable[[str], "subprocess.Popen[str]"]:
    def start(behaviour: str) -> "subprocess.Popen[str]":
        return subprocess.Popen([sys.executable, "-c", LAUNCHER, str(run.path), behaviour], text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip

    return start


def rank_pids(run: RunDir) -> List[int]:
    deadline = time.time() + 40
    while time.time() < deadline:
        found = [path.read_text() for path in run.path.glob("pid-*")]
        if len(found) == 2 and all(found):
            return [int(text) for text in found]
        time.sleep(0.05)
    raise AssertionError("the ranks did not start")


def gone(pids: List[int], within_s: float = 0.0) -> bool:
    _, alive = psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=within_s)
    return all(process.status() == psutil.STATUS_ZOMBIE for process in alive)


@pytest.mark.process
@pytest.mark.parametrize(
    ("behaviour", "code", "says"),
    [
        ("done", EXIT_DONE, []),
        ("error", 2, ["rank 1: boom 1", "logs: "]),
        ("killed", 1, [f"rank 1 on {platform.node()} was killed by SIGKILL", "memory", "ftdist resume"]),
        ("silent", 1, ["all ranks exited with code 0, but the run did not reach its last step"]),
    ],
)
def test_a_run_ends_with_one_message_and_its_exit_code(
    behaviour: str, code: int, says: List[str], run: RunDir, launch: Callable[[str], "subprocess.Popen[str]"]
) -> None:
    _, errors = launch(behaviour).communicate(timeout=60)
    for text in says:
        assert text in errors
    assert "Traceback" not in errors and "boom 0" not in errors
    assert run.read_status()["state"] == ("done" if code == 0 else "failed")
    assert gone(rank_pids(run))


@pytest.mark.process
def test_ctrl_c_stops_for_preemption(run: RunDir, launch: Callable[[str], "subprocess.Popen[str]"]) -> None:
    launcher = launch("polite")
    pids = rank_pids(run)
    launcher.send_signal(signal.SIGINT)
    _, errors = launcher.communicate(timeout=30)
    assert launcher.returncode == EXIT_PREEMPTED and "saving a checkpoint" in errors
    assert gone(pids)


@pytest.mark.process
def test_sigterm_stops_for_preemption(run: RunDir, launch: Callable[[str], "subprocess.Popen[str]"]) -> None:
    launcher = launch("polite")
    rank_pids(run)
    launcher.terminate()
    launcher.communicate(timeout=30)
    assert launcher.returncode == EXIT_PREEMPTED


@pytest.mark.process
def test_a_second_ctrl_c_ends_the_run_at_once(run: RunDir, launch: Callable[[str], "subprocess.Popen[str]"]) -> None:
    launcher = launch("stubborn")
    pids = rank_pids(run)
    launcher.send_signal(signal.SIGINT)
    time.sleep(0.5)
    started = time.monotonic()
    launcher.send_signal(signal.SIGINT)
    _, errors = launcher.communicate(timeout=30)
    assert time.monotonic() - started < 10
    assert launcher.returncode == EXIT_PREEMPTED and "error" not in errors
    status = run.read_status()
    assert (status["state"], status["exit_reason"]) == ("preempted", "ended immediately, before it could save")
    assert gone(pids, within_s=2)


@pytest.mark.process
def test_a_killed_launcher_leaves_no_rank(run: RunDir, launch: Callable[[str], "subprocess.Popen[str]"]) -> None:
    launcher = launch("polite")
    pids = rank_pids(run)
    torchrun = psutil.Process(pids[0]).ppid()
    launcher.kill()
    launcher.communicate(timeout=30)
    assert gone([*pids, torchrun], within_s=20)


@pytest.mark.process
def test_a_killed_torchrun_leaves_no_rank(run: RunDir, launch: Callable[[str], "subprocess.Popen[str]"]) -> None:
    launcher = launch("stubborn")
    pids = rank_pids(run)
    os.kill(psutil.Process(pids[0]).ppid(), signal.SIGKILL)
    launcher.communicate(timeout=30)
    assert launcher.returncode == 1 and gone(pids, within_s=2)


@pytest.mark.process
def test_a_stopped_torchrun_is_killed_when_its_ranks_have_ended(
    run: RunDir, launch: Callable[[str], "subprocess.Popen[str]"]
) -> None:
    """A stopped process does not see that its children have ended."""
    launcher = launch("stubborn")
    ranks = [psutil.Process(pid) for pid in rank_pids(run)]
    torchrun = ranks[0].parent()
    assert torchrun is not None
    torchrun.suspend()
    record = {"rank": 1, "time": time.time(), "message": "message 1", "exit_code": 1}
    run.error_file(1, 0).write_text(json.dumps(record))
    for rank in ranks:
        rank.kill()
    _, errors = launcher.communicate(timeout=40)
    assert launcher.returncode == 1 and "rank 1: message 1" in errors
    assert gone([torchrun.pid, *(rank.pid for rank in ranks)], within_s=2)
