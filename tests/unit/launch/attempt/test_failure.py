"""The one message for an attempt that failed, from error files and from what torchrun printed."""

import json
import platform
from pathlib import Path
from typing import Any, Dict

import pytest

from ftdist.base.errors import LaunchError
from ftdist.launch.attempt import failure
from ftdist.run.rundir import RunDir


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    found = RunDir(tmp_path / "run")
    found.logs.mkdir(parents=True)
    return found


def write_error(run: RunDir, rank: int, when: float, **more: Any) -> None:
    record: Dict[str, Any] = {"rank": rank, "time": when, "message": f"message {rank}", "exit_code": 1, **more}
    run.error_file(rank, 0).write_text(json.dumps(record))


def test_the_earliest_error_is_shown_and_its_exit_code_kept(run: RunDir) -> None:
    write_error(run, 0, 20.0)
    write_error(run, 3, 10.0, exit_code=2)
    run.error_file(1, 0).write_text('{"rank": 1, "ti')
    error = failure.explain_failure(run, 0, [run.logs / "none"], 1)
    assert str(error).startswith("rank 3: message 3") and error.exit_code == 2


def test_an_unexpected_error_is_shown_with_rank_host_and_last_lines(run: RunDir) -> None:
    write_error(run, 3, 10.0, host="node7", known=False)
    run.log_file(3, 0).write_text("".join(f"line {n}\n" for n in range(100)))
    text = str(failure.explain_failure(run, 0, [run.logs / "none"], 1))
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
    """Write torchrun's report, in which the first of two ranks seems to have failed first."""
    path = run.logs / f"{name}.log"
    path.write_text(REPORT.format(**{"host": "localhost", "first": 0, "second": 1, "root": 1, "code": -15, **values}))
    return path


def test_a_killed_rank_is_named_from_the_report_of_its_own_machine(run: RunDir) -> None:
    logs = [report(run, "node-0", host="node1"), report(run, "node-1", host="node2", first=2, root=-9, second=3)]
    assert str(failure.explain_failure(run, 0, logs, 1)).startswith("rank 2 on node2 was killed by SIGKILL")


def test_a_machine_that_knows_itself_as_localhost_is_named_by_its_own_name(run: RunDir) -> None:
    """With ``launch=nodes`` the first machine explains, and is not the one whose rank was killed."""
    logs = [report(run, "node-0.attempt-0"), report(run, "node-1.attempt-0", first=2, root=-9, second=3)]
    for number in (0, 1):
        (run.logs / f"node-{number}.attempt-0.joined").write_text(f"node{number + 1}")
    assert str(failure.explain_failure(run, 0, logs, 1)).startswith("rank 2 on node2 was killed by SIGKILL")


def test_a_killed_rank_is_blamed_before_one_that_lost_its_connection(run: RunDir) -> None:
    """On a busy machine torchrun may see the other rank end first."""
    write_error(run, 0, 10.0, message=GLOO, known=False)
    run.log_file(1, 0).touch()
    text = str(failure.explain_failure(run, 0, [report(run, code=-9)], 1))
    assert (
        text.startswith(f"rank 1 on {platform.node()} was killed by SIGKILL") and "00001.attempt-0.log is empty" in text
    )
    run.log_file(1, 0).write_text("the last word\n")
    assert "| the last word\n" in str(failure.explain_failure(run, 0, [report(run, code=-9)], 1))


def test_a_rank_that_torchrun_killed_is_not_blamed(run: RunDir) -> None:
    write_error(run, 0, 10.0)
    log = report(run, code=-9)
    log.write_text("Unable to shutdown process 12 via 15, forcefully exiting via 9\n" + log.read_text())
    assert str(failure.explain_failure(run, 0, [log], 1)).startswith("rank 0: message 0")


def test_an_error_is_shown_before_errors_that_follow_from_it(run: RunDir) -> None:
    write_error(run, 0, 10.0, message=GLOO, known=False)
    write_error(run, 1, 20.0, message="ValueError: first, but slow to write it down", known=False)
    assert str(failure.explain_failure(run, 0, [report(run, code=-6)], 1)).startswith("rank 1: ValueError")


def test_an_aborted_rank_is_blamed_before_ranks_that_lost_it(run: RunDir) -> None:
    write_error(run, 0, 10.0, message=GLOO, known=False)
    assert str(failure.explain_failure(run, 0, [report(run, code=-6)], 1)).startswith(
        f"rank 1 on {platform.node()} was killed by SIGABRT"
    )


def test_ranks_of_a_machine_that_is_gone_are_named(run: RunDir) -> None:
    """No torchrun is left to report them, and they could not write an error."""
    for rank in range(4):
        run.log_file(rank, 0).touch()
    write_error(run, 0, 10.0, message=GLOO, known=False)
    text = str(failure.explain_failure(run, 0, [report(run)], 1))
    assert (
        text.startswith("rank 0: RuntimeError: [gloo")
        and "these ranks ended without recording an error: 2, 3\n" in text
    )


def test_without_an_error_file_the_last_lines_are_shown(run: RunDir) -> None:
    log = run.logs / "launcher.attempt-0.log"
    log.write_text("".join(f"line {n}\n" for n in range(100)))
    error = failure.explain_failure(run, 0, [log], 3)
    assert isinstance(error, LaunchError)
    assert "exit code 3" in str(error) and "line 99" in str(error) and "line 10\n" not in str(error)


def test_a_machine_that_pdsh_cannot_reach_is_named(run: RunDir) -> None:
    log = run.logs / "launcher.attempt-0.log"
    log.write_text("n2: ssh: Could not resolve hostname n2: Name or service not known\n"
                   "pdsh@n1: n2: ssh exited with exit code 255\n[2026-11-24 13:28:39,217] [INFO] cmd\n")  # fmt: skip
    found = failure.explain_failure(run, 0, [log], 255).found.splitlines()[0]
    assert found == "n2 cannot be reached: ssh: Could not resolve hostname n2: Name or service not known"


RANKS_ENDED = REPORT.format(host="n1", first=0, second=1, root=-15, code=-15)
TERMINATED = "W0101 agent: Received Signals.SIGTERM death signal, shutting down workers\nProcess 3 got signal: 15\n"


@pytest.mark.parametrize(
    ("node", "job", "code", "found"),
    [
        (TERMINATED, "", 1, "ended by SIGTERM"),
        ("", "srun: error: node2: task 1: Terminated\n", 143, "ended by SIGTERM"),
        ("", "", 143, "ended by SIGTERM"),  # before there were ranks
        (RANKS_ENDED, "", 1, "ended by SIGTERM"),  # SIGTERM was sent to a rank, not to torchrun
        (RANKS_ENDED.replace("-15 (pid: 11", "-9 (pid: 11"), "", 1, ""),
        ("", "srun: error: Node failure on node2\n", 1, "Slurm could not run the ranks (Node failure on node2)"),
        ("", "srun: error: Task launch for StepId=7.0 failed on node node2: Communication connection failure\n", 1,
         "Slurm could not run the ranks (Task launch for StepId=7.0 failed on node node2: Communication"),
        ("", "srun: error: Unable to create step for job 7: Required node not available (down)\n", 1,
         "Slurm could not run the ranks (Unable to create step"),
        ("", "", 1, ""),
        ("", "", 137, ""),
        ("error: node1 cannot reach node2\n", "srun: error: node2: task 1: Terminated\n", 143, ""),
    ],
)  # fmt: skip
def test_ranks_that_were_ended_from_outside_have_not_failed(
    run: RunDir, node: str, job: str, code: int, found: str
) -> None:
    logs = [run.logs / "node-0.attempt-0.log", run.logs / "slurm-7.out"]
    logs[0].write_text(node)
    logs[1].write_text(f"srun: error: Node failure on node9\nattempt 0 of job 7 on node[1-2]\n{job}")
    said = failure.ended_from_outside(run, 0, logs, code)
    assert said.startswith(found) and bool(said) == bool(found)
    write_error(run, 1, 10.0)  # a rank that failed makes srun end the others
    assert failure.ended_from_outside(run, 0, logs, code) == ""


def test_an_error_that_a_rank_could_not_record_is_shown_without_what_torchrun_prints_after_it(run: RunDir) -> None:
    """Here a library is missing, so a rank cannot import the module that would record its error."""
    log = report(run, root=1, code=1)
    trace = 'Traceback (most recent call last):\n  File "main.py", line 1, in <module>\n    import torch\n'
    raised = "ImportError: libcudart.so.12: cannot open shared object file: No such file or directory"
    torchruns = (
        "  raise ChildFailedError(\ntorch.distributed.elastic.multiprocessing.errors.ChildFailedError: main FAILED\n"
    )
    log.write_text(f"W1130 run.py:766] Setting OMP_NUM_THREADS\n{trace}{raised}\n{trace}{torchruns}{log.read_text()}")
    error = failure.explain_failure(run, 0, [log], 1)
    assert error.found.startswith(f"a rank ended before it could record its error: {raised}\n  | W1130")
    assert error.found.count(raised) == 2 and "ChildFailedError" not in error.found and "Root Cause" not in error.found
    assert error.fix == f"remove the cause, then: ftdist resume {run.path}"
    log.write_text(f"{trace}{torchruns}{REPORT}")
    assert "without recording an error" in failure.explain_failure(run, 0, [log], 1).found
