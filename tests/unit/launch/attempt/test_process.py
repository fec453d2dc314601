"""Starting ranks: the plan, and what becomes of the processes however a run ends (real torchrun, a stand-in rank)."""

import json
import os
import platform
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any, Callable, Dict, List

import psutil
import pytest

from ftdist.base.errors import EXIT_DONE, EXIT_PREEMPTED, LaunchError
from ftdist.config.schema import Device, RunConfig
from ftdist.launch.attempt import failure, lifecycle
from ftdist.launch.backends.base import plan_local
from ftdist.run.rundir import RunDir

RANK = """
import json, os, signal, sys, time
from pathlib import Path
run, behaviour, rank = Path(sys.argv[1]), sys.argv[2], os.environ["RANK"]
(run / f"pid-{rank}").write_text(str(os.getpid()))
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
local.plan_local = lambda config, module, arguments: plan(config, "standin_rank", [arguments[0], sys.argv[2]])
try:
    sys.exit(local.launch_run(config, RunDir(sys.argv[1])))
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


def resolved(**launch: Any) -> RunConfig:
    config = RunConfig()
    for name, value in {"device": Device.cpu, "nproc_per_node": 2, "threads_per_rank": 3, **launch}.items():
        setattr(config.launch, name, value)
    return config


def test_plan_is_a_command_that_can_be_typed() -> None:
    plan = plan_local(resolved(), "ftdist.train.main", ["/runs/a b"])
    assert plan.argv[1:] == ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
                             "-m", "ftdist.train.main", "/runs/a b"]  # fmt: skip
    assert plan.env["OMP_NUM_THREADS"] == "3" and plan.env["DS_ACCELERATOR"] == "cpu"
    assert plan.env["CUDA_VISIBLE_DEVICES"] == ""
    typed = subprocess.run(["bash", "-c", "printf '%s\\n' " + plan.shell().split("-m ftdist.train.main", 1)[1]],
                           capture_output=True, text=True, check=True)  # fmt: skip
    assert typed.stdout == "/runs/a b\n"
    assert plan.shell().startswith("OMP_NUM_THREADS=3 ")


def test_gpus_are_left_visible() -> None:
    env = plan_local(resolved(device=Device.cuda), "m", []).env
    assert "CUDA_VISIBLE_DEVICES" not in env and "DS_ACCELERATOR" not in env


@pytest.mark.process
@pytest.mark.parametrize(
    ("behaviour", "code", "says"),
    [
        ("done", EXIT_DONE, []),
        ("error", 2, ["rank 1: boom 1", "logs: "]),
        ("killed", 1, [f"rank 1 on {platform.node()} was killed by SIGKILL", "memory", "ftdist resume"]),
        ("silent", 1, ["ended before the run did"]),
    ],
)
def test_one_message_and_the_exit_code(
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
def test_second_ctrl_c_ends_it_at_once(run: RunDir, launch: Callable[[str], "subprocess.Popen[str]"]) -> None:
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
    assert (status["state"], status["exit_reason"]) == ("preempted", "ended at once, before it could save")
    assert gone(pids, within_s=2)


@pytest.mark.process
def test_killed_launcher_leaves_no_rank(run: RunDir, launch: Callable[[str], "subprocess.Popen[str]"]) -> None:
    launcher = launch("polite")
    pids = rank_pids(run)
    torchrun = psutil.Process(pids[0]).ppid()
    launcher.kill()
    launcher.communicate(timeout=30)
    assert gone([*pids, torchrun], within_s=20)


@pytest.mark.process
def test_killed_torchrun_leaves_no_rank(run: RunDir, launch: Callable[[str], "subprocess.Popen[str]"]) -> None:
    launcher = launch("stubborn")
    pids = rank_pids(run)
    os.kill(psutil.Process(pids[0]).ppid(), signal.SIGKILL)
    launcher.communicate(timeout=30)
    assert launcher.returncode == 1 and gone(pids, within_s=2)


@pytest.mark.process
def test_a_stopped_torchrun_whose_ranks_have_ended_is_ended(
    run: RunDir, launch: Callable[[str], "subprocess.Popen[str]"]
) -> None:
    """It would never see that they have."""
    launcher = launch("stubborn")
    ranks = [psutil.Process(pid) for pid in rank_pids(run)]
    torchrun = ranks[0].parent()
    assert torchrun is not None
    torchrun.suspend()
    write_error(run, 1, time.time())
    for rank in ranks:
        rank.kill()
    _, errors = launcher.communicate(timeout=40)
    assert launcher.returncode == 1 and "rank 1: message 1" in errors
    assert gone([torchrun.pid, *(rank.pid for rank in ranks)], within_s=2)


def write_error(run: RunDir, rank: int, when: float, **more: Any) -> None:
    record: Dict[str, Any] = {"rank": rank, "time": when, "message": f"message {rank}", "exit_code": 1, **more}
    run.error_file(rank, 0).write_text(json.dumps(record))


def test_the_earliest_error_is_shown_and_its_exit_code_kept(run: RunDir) -> None:
    write_error(run, 0, 20.0)
    write_error(run, 3, 10.0, exit_code=2)
    run.error_file(1, 0).write_text('{"rank": 1, "ti')
    error = failure.explain_failure(run, 0, run.logs / "none", 1)
    assert str(error).startswith("rank 3: message 3") and error.exit_code == 2


def test_an_error_that_explains_nothing_comes_with_rank_host_and_last_lines(run: RunDir) -> None:
    write_error(run, 3, 10.0, host="node7", known=False)
    run.log_file(3, 0).write_text("".join(f"line {n}\n" for n in range(100)))
    text = str(failure.explain_failure(run, 0, run.logs / "none", 1))
    assert text.startswith("rank 3 on node7: message 3") and "| line 70\n" in text and "| line 69\n" not in text
    assert "the last lines of rank-00003.attempt-0.log" in text


REPORT = """\
Failures:
[1]:
  time      : 2026-11-24_08:00:01
  host      : {host}
  rank      : {second} (local_rank: 1)
  exitcode  : {code} (pid: 12) (SIGNAL)
  error_file: <N/A>
  traceback : Signal received by PID 12
------------------------------------------------------------
Root Cause (first observed failure):
[0]:
  time      : 2026-11-24_08:00:00
  host      : {host}
  rank      : {first} (local_rank: 0)
  exitcode  : {root} (pid: 11)
  error_file: <N/A>
  traceback : To enable traceback see: https://pytorch.org/docs/stable/elastic/errors.html
"""
GLOO = "RuntimeError: [gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:30563"


def report(run: RunDir, name: str = "launcher", **values: Any) -> Path:
    """What torchrun says when the first of two ranks seems to have failed first."""
    path = run.logs / f"{name}.log"
    path.write_text(REPORT.format(**{"host": "localhost", "first": 0, "second": 1, "root": 1, "code": -15, **values}))
    return path


def test_a_killed_rank_is_named_from_the_report_of_its_own_machine(run: RunDir) -> None:
    logs = [report(run, "node-0", host="node1"), report(run, "node-1", host="node2", first=2, root=-9, second=3)]
    assert str(failure.explain_failure(run, 0, logs, 1)).startswith("rank 2 on node2 was killed by SIGKILL")


def test_a_killed_rank_comes_before_one_that_failed_in_consequence(run: RunDir) -> None:
    """On a busy machine torchrun sees the second of them end first."""
    write_error(run, 0, 10.0, message=GLOO, known=False)
    run.log_file(1, 0).touch()
    text = str(failure.explain_failure(run, 0, report(run, code=-9), 1))
    assert (
        text.startswith(f"rank 1 on {platform.node()} was killed by SIGKILL") and "00001.attempt-0.log is empty" in text
    )
    run.log_file(1, 0).write_text("the last word\n")
    assert "| the last word\n" in str(failure.explain_failure(run, 0, report(run, code=-9), 1))


def test_a_rank_that_torchrun_had_to_kill_is_not_the_first(run: RunDir) -> None:
    write_error(run, 0, 10.0)
    log = report(run, code=-9)
    log.write_text("Unable to shutdown process 12 via 15, forcefully exiting via 9\n" + log.read_text())
    assert str(failure.explain_failure(run, 0, log, 1)).startswith("rank 0: message 0")


def test_an_error_comes_before_those_that_follow_from_it(run: RunDir) -> None:
    write_error(run, 0, 10.0, message=GLOO, known=False)
    write_error(run, 1, 20.0, message="ValueError: first, but slow to write it down", known=False)
    assert str(failure.explain_failure(run, 0, report(run, code=-6), 1)).startswith("rank 1: ValueError")


def test_an_abort_comes_before_the_loss_of_that_rank(run: RunDir) -> None:
    write_error(run, 0, 10.0, message=GLOO, known=False)
    assert str(failure.explain_failure(run, 0, report(run, code=-6), 1)).startswith(
        f"rank 1 on {platform.node()} was killed by SIGABRT"
    )


def test_ranks_of_a_machine_that_is_gone_are_named(run: RunDir) -> None:
    """No torchrun is left to report them, and they could write no error."""
    for rank in range(4):
        run.log_file(rank, 0).touch()
    write_error(run, 0, 10.0, message=GLOO, known=False)
    text = str(failure.explain_failure(run, 0, report(run), 1))
    assert text.startswith("rank 0: RuntimeError: [gloo") and "ended without a word: rank 2, 3\n" in text


def test_without_an_error_file_the_last_lines_are_shown(run: RunDir) -> None:
    log = run.logs / "launcher.attempt-0.log"
    log.write_text("".join(f"line {n}\n" for n in range(100)))
    error = failure.explain_failure(run, 0, log, 3)
    assert isinstance(error, LaunchError)
    assert "exit code 3" in str(error) and "line 99" in str(error) and "line 10\n" not in str(error)


def test_a_machine_that_pdsh_cannot_reach_is_named(run: RunDir) -> None:
    log = run.logs / "launcher.attempt-0.log"
    log.write_text("n2: ssh: Could not resolve hostname n2: Name or service not known\n"
                   "pdsh@n1: n2: ssh exited with exit code 255\n[2026-11-24 13:28:39,217] [INFO] cmd\n")  # fmt: skip
    found = failure.explain_failure(run, 0, log, 255).found.splitlines()[0]
    assert found == "n2 cannot be reached: ssh: Could not resolve hostname n2: Name or service not known"


def test_attempts_are_counted(run: RunDir) -> None:
    assert lifecycle.next_attempt(run) == 0
    run.write_status(state="failed", attempt=0)
    assert lifecycle.next_attempt(run) == 1
