"""The verbs that the batch script calls: what they write, and whether the job is requeued."""

import argparse
import signal
import subprocess
from pathlib import Path
from typing import Dict

import pytest

from ftdist.base.errors import EXIT_FAILED, EXIT_PREEMPTED, ConfigError, LaunchError
from ftdist.config.frozen import dump_config, load_config
from ftdist.config.launch import Device, LaunchKind
from ftdist.config.schema import RunConfig
from ftdist.launch.attempt import machine
from ftdist.launch.backends.slurm import client, script, submission
from ftdist.launch.backends.slurm.backend import SlurmBackend
from ftdist.launch.backends.slurm.follow import before_this
from ftdist.launch.runs.programs import ProgramKilled
from ftdist.launch.verbs import batch_script
from ftdist.run.rundir import RunDir


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A run that waits in the queue as job 7."""
    run, config = RunDir(tmp_path / "run"), RunConfig(run_dir=str(tmp_path / "run"), cache_dir=str(tmp_path))
    launch = config.launch
    launch.kind, launch.device, launch.nproc_per_node, launch.max_requeues = LaunchKind.slurm, Device.cpu, 1, 2
    launch.slurm.modules = ["slow"]
    run.logs.mkdir(parents=True)
    run.config.write_text(dump_config(config), encoding="utf-8")
    run.submit.write_text(script.render(config), encoding="utf-8")
    run.write_status(state="queued", attempt=-1, job_id="7", requeues=0)
    return run


def begin(run: RunDir) -> int:
    return batch_script.begin(argparse.Namespace(run_dir=str(run.path), job="7", old_request=False))


def end(run: RunDir, code: int = 0, asked: bool = False, ended: bool = False) -> int:
    return batch_script.end(argparse.Namespace(run_dir=str(run.path), job="7", code=code, asked=asked, ended=ended))


def test_a_run_that_was_asked_to_stop_does_not_begin(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    run.cancel.touch()
    assert begin(run) == end(run, code=EXIT_PREEMPTED) == EXIT_PREEMPTED
    status = run.read_status()
    assert (status["state"], status["exit_reason"]) == ("preempted", "cancelled before it began")
    assert not run.attempt.exists() and not capsys.readouterr().out


def prepared(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> int:
    """Call begin() for a run whose model and data are prepared."""
    for step in ("prepare_model", "prepare_run_data"):
        monkeypatch.setattr(batch_script.inputs, step, lambda config, *_: run.path / "no-data")
    run.attempt.unlink(missing_ok=True)  # as the script does
    return begin(run)


@pytest.mark.parametrize("how", ["preempted", "killed", "near its limit"])
def test_a_job_is_requeued_at_most_max_requeues_times(
    how: str, run: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """max_requeues is 2. Slurm requeues the job, with or without a signal before, or the job requeues itself."""
    why = {"preempted": "stopped by Slurm", "near its limit": "near the time limit",
           "killed": batch_script.BY_SLURM}[how]  # fmt: skip
    for requeues in range(3):
        before = before_this(run.read_status())
        assert before == (why if requeues and how != "killed" else ""), "what the follower says while the job waits"
        assert prepared(run, monkeypatch) == 0 and run.read_status()["requeues"] == requeues
        first = capsys.readouterr().out.splitlines()[0]
        assert first == f"attempt {requeues} of job 7 on None" + (f", after: {why}" if requeues else "")
        if how != "killed":
            run.write_status(state="preempted", last_checkpoint_step=requeues)  # by the ranks
            assert end(run, asked=how == "near its limit", ended=how == "preempted") == EXIT_PREEMPTED
        said = capsys.readouterr().out.splitlines()
        assert (batch_script.REQUEUE in said) == (how == "near its limit" and requeues < 2)
    if how != "near its limit":  # Slurm does not ask
        assert prepared(run, monkeypatch) == end(run, code=EXIT_PREEMPTED) == EXIT_PREEMPTED
    status = run.read_status()
    assert (status["state"], status["attempt"]) == ("preempted", 2)
    limit = "the limit of launch.max_requeues=2 is reached"
    too_often = "not started: requeued more often than launch.max_requeues=2 allows"
    assert status["exit_reason"] == (f"near the time limit; not requeued, because {limit}" if how == "near its limit"
                                     else too_often)  # fmt: skip
    submission.mark_queued(run, "7")  # submitted anew
    assert before_this(run.read_status()) == ""
    assert prepared(run, monkeypatch) == 0 and run.read_status()["requeues"] == 0


@pytest.mark.parametrize("ended", [False, True], ids=["", "the limit has come, too"])
def test_a_job_whose_ranks_stop_before_its_limit_is_requeued(
    ended: bool, run: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared(run, monkeypatch)
    run.write_status(state="preempted", exit_reason="near the time limit", last_checkpoint_step=3)  # by the ranks
    assert end(run, ended=ended) == EXIT_PREEMPTED
    said = capsys.readouterr()
    assert batch_script.REQUEUE in said.out.splitlines() and said.err == "stopped: near the time limit\n"
    assert run.read_status()["exit_reason"] == "near the time limit"


@pytest.mark.parametrize(("code", "how"), [(137, "was killed by SIGKILL"), (3, "ended with exit code 3")])
def test_a_job_that_is_killed_while_it_prepares_says_so(
    code: int, how: str, run: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared(run, monkeypatch)
    run.attempt.unlink()
    assert end(run, code) == EXIT_FAILED
    said, status = capsys.readouterr(), run.read_status()
    assert (
        f"the preparation of the model and the data {how}, before the ranks started" in said.err
        and "requeue" not in said.out
    )
    assert ("ran out of memory" in said.err and "launch.slurm.mem=SIZE" in said.err) == (code == 137)
    assert (status["state"], status["exit_code"]) == ("failed", EXIT_FAILED) and how in status["exit_reason"]


def test_sigterm_while_a_job_prepares_leads_to_a_requeue(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The program that prepares the data was ended. The next attempt says why."""
    assert prepared(run, monkeypatch) == 0

    def killed(*_: object) -> None:
        raise ProgramKilled("ftdist.data.main", signal.SIGTERM)

    run.write_status(state="queued", attempt=-1)
    run.attempt.unlink()
    monkeypatch.setattr(batch_script.inputs, "prepare_run_data", killed)
    code = begin(run)
    run.job_log("7").write_text(capsys.readouterr().err)
    assert code == 143 and "ftdist.data.main was killed by SIGTERM" in run.job_log("7").read_text()
    assert end(run, code) == EXIT_PREEMPTED and batch_script.REQUEUE in capsys.readouterr().out.splitlines()
    assert run.read_status()["state"] == "preempted"
    assert prepared(run, monkeypatch) == 0
    assert ", after: ended by SIGTERM, before it could save" in capsys.readouterr().out


@pytest.mark.parametrize("reason", ["ended by SIGTERM, before it could save", ""])
def test_an_attempt_that_had_not_begun_is_not_said_to_be_lost(
    reason: str, run: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run.write_status(state="preempted", attempt=-1, exit_reason=reason)
    assert prepared(run, monkeypatch) == 0
    assert f", after: {reason or batch_script.BY_SLURM}" in capsys.readouterr().out


def test_the_job_of_a_trial_that_pauses_ends_well(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared(run, monkeypatch)
    run.write_status(state="paused", step=2)
    assert end(run) == 0 and batch_script.REQUEUE not in capsys.readouterr().out.splitlines()
    assert (run.read_status()["state"], run.read_status()["exit_code"]) == ("paused", 0)


def test_a_job_does_not_begin_with_a_deepspeed_config_that_was_edited(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert prepared(run, monkeypatch) == 0  # the file was missing, and is written
    text = run.deepspeed.read_text()
    run.deepspeed.write_text(text.replace('"stage": 2', '"stage": 1'))
    with pytest.raises(ConfigError, match="zero_optimization.stage=1, but run.yaml gives 2"):
        prepared(run, monkeypatch)
    assert run.read_status()["state"] == "failed" and not run.attempt.exists()


def test_a_job_on_gpus_with_a_torch_for_cpu_fails_before_its_ranks(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the node; the same is said before a job is submitted from the same environment."""
    monkeypatch.setattr(machine, "torch_without_gpus", lambda: "2.13.0+cpu")
    config = load_config(run.config)
    config.launch.device = Device.cuda
    run.config.write_text(dump_config(config), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"launch.device=cuda, but torch 2.13.0\+cpu"):
        prepared(run, monkeypatch)
    assert run.read_status()["state"] == "failed" and "built without CUDA" in run.read_status()["exit_reason"]
    with pytest.raises(ConfigError, match=r"launch.device=cuda, but torch 2.13.0\+cpu"):
        SlurmBackend().start(config, run)


@pytest.mark.parametrize("printed", ["8", "17\n8", ""], ids=["the id", "two numbers", "nothing"])
def test_a_job_that_submits_itself_again_counts_as_a_requeue(
    printed: str, run: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared(run, monkeypatch)
    run.write_status(state="preempted")
    end(run, asked=True)
    monkeypatch.setattr(client, "available", lambda: True)
    monkeypatch.setattr(submission, "jobs_of", lambda script: {"7", "8"} if script == run.submit else set())
    batch_script.moved(argparse.Namespace(run_dir=str(run.path), job=printed, because="not now\nfor job 7"))
    assert run.read_status()["job_id"] == "8"
    said = "Slurm did not requeue this job (scontrol: not now; for job 7), so the run continues in another one: job 8"
    assert said in capsys.readouterr().err
    monkeypatch.setattr(client, "available", lambda: False)
    assert batch_script.begin(argparse.Namespace(run_dir=str(run.path), job="8", old_request=False)) == 0
    assert run.read_status()["requeues"] == 1


@pytest.mark.parametrize("left", [False, True], ids=["new", "left by an earlier attempt"])
def test_a_request_to_stop_while_modules_are_loaded_is_kept(left: bool, run: RunDir) -> None:
    """``_begin`` removes only a request that was there when the script began."""
    if left:
        run.preempt.touch()
    script = run.submit.read_text()
    before_ranks = script[: script.index("on_first_node _begin")] + 'echo "old=$old"'
    module = f'module() {{ touch "{run.preempt}"; }}\n'
    environment = {"SLURM_JOB_ID": "7", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(["bash", "-c", module + before_ranks], env=environment, check=True, capture_output=True)
    assert done.stdout.decode() == f"old={1 if left else ''}\n" and run.preempt.exists()


def test_a_second_job_of_a_run_changes_nothing(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    def files() -> Dict[str, bytes]:
        return {str(path): path.read_bytes() for path in run.path.rglob("*") if path.is_file()}

    monkeypatch.setattr(client, "available", lambda: False)
    assert prepared(run, monkeypatch) == 0
    run.preempt.touch()
    before, mine = files(), {"run_dir": str(run.path), "job": "8"}
    with pytest.raises(LaunchError, match="is in use by job 7"):
        batch_script.begin(argparse.Namespace(**mine, old_request=True))
    assert batch_script.end(argparse.Namespace(**mine, code=1, asked=True, ended=True)) == EXIT_FAILED
    assert files() == before
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")  # Slurm has requeued job 7, whose first start may be alive
    assert begin(run) == 0 and run.read_status()["attempt"] == 1
    monkeypatch.delenv("SLURM_RESTART_COUNT")
    assert end(run, code=1, ended=True) == EXIT_FAILED and run.read_status()["state"] == "starting"


@pytest.mark.parametrize("when", ["before the ranks", "at the first step"])
def test_a_job_without_progress_is_not_requeued_again(
    when: str, run: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for attempt, requeued in enumerate((True, True, False)):
        assert prepared(run, monkeypatch) == 0
        if when != "before the ranks":
            run.log_file(0, attempt).touch()
        state = "starting" if when == "before the ranks" else "preempted"
        run.write_status(state=state, last_checkpoint_step=5)  # the first attempt gets there
        assert end(run, asked=True) == EXIT_PREEMPTED
        assert (batch_script.REQUEUE in capsys.readouterr().out.splitlines()) == requeued
    assert "2 attempts in a row saved no newer checkpoint" in run.read_status()["exit_reason"]


def test_a_job_with_a_node_that_does_not_see_the_run_directory_fails(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """srun then ends the other tasks with SIGTERM, which alone would lead to a requeue."""
    prepared(run, monkeypatch)
    node = run.submit.read_text().partition("node='")[2].partition("'\n")[0]
    env = {"PATH": "/usr/bin:/bin", "SLURMD_NODENAME": "node2", "RUN_DIR": f"{run.path}-elsewhere"}
    done = subprocess.run(["bash", "-c", node], env=env, capture_output=True, text=True)
    run.job_log("7").write_text(f"{done.stderr}srun: error: node1: task 0: Terminated\n")
    assert end(run, code=128 + signal.SIGTERM) == EXIT_FAILED
    said = capsys.readouterr()
    assert f"error: node2 does not see {run.path}-elsewhere; use a run_dir" in said.err and "requeue" not in said.out
    assert run.read_status()["state"] == "failed"


def test_a_module_that_cannot_be_loaded_ends_the_job(run: RunDir) -> None:
    script = "module() { return 1; }\n" + run.submit.read_text().replace("on_first_node _begin", "echo began")
    done = subprocess.run(["bash", "-c", script], env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: module load slow failed (launch.slurm.modules)\n"


@pytest.mark.parametrize("old", [False, True])
def test_a_job_begins_without_an_old_request_to_stop(old: bool, run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in ("prepare_model", "prepare_run_data"):
        monkeypatch.setattr(batch_script.inputs, step, lambda config, *_: run.path / "no-data")
    run.preempt.touch()
    assert batch_script.begin(argparse.Namespace(run_dir=str(run.path), job="7", old_request=old)) == 0
    assert run.preempt.exists() != old
