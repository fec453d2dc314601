"""Ctrl-C, SIGTERM and damaged checkpoints: a stopped run resumes as if it had not been stopped."""

import random
import re
import signal
from pathlib import Path
from typing import Iterator

import psutil
import pytest

from ftdist.base.errors import EXIT_FAILED, EXIT_PREEMPTED
from ftdist.run.rundir import RunDir
from tests.helpers.cli import ftdist, interrupt, kill_tree, start, succeed, wait_until
from tests.helpers.group import ftdist_with_forked_ranks
from tests.helpers.runs import BARE, PADDED_ZERO3, SMOKE, assert_same, copy_of, finished_run, newest_step, reference_run

# Every step has an evaluation, so that a stop always falls on one. Only some have a checkpoint.
SETTINGS = (*SMOKE, *BARE, "train.max_steps=8", "train.eval_every=1", "train.checkpoint_every=3",
            "data.max_heldout_documents=16", "track=disabled", "train.keep_checkpoints=3")  # fmt: skip


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunDir]:
    """Return a run that Ctrl-C has stopped after one or two checkpoints. Tests resume copies of it."""
    run = RunDir(tmp_path_factory.mktemp("stopped") / "run")
    process = start("train", *SETTINGS, f"run_dir={run.path}")
    wait_until(process, lambda: newest_step(run) >= 4)
    done = interrupt(process)
    assert done.code == EXIT_PREEMPTED, done.out
    assert re.search(rf"stopped after \S+.*; resume with: ftdist resume {run.path}", done.out)
    assert "saving a checkpoint" in done.out
    assert done.out.count("error:") == 0
    yield run


def test_ctrl_c_saves_a_checkpoint_and_says_so(stopped: RunDir) -> None:
    status = stopped.read_status()
    assert status["state"] == "preempted"
    assert stopped.find_checkpoint("last") == stopped.checkpoint(status["last_checkpoint_step"])
    assert status["last_checkpoint_step"] == newest_step(stopped) < 8
    assert not stopped.export.exists()
    assert " stopped " in succeed("status", stopped.path).out


def test_a_stopped_run_resumes_bit_for_bit(stopped: RunDir, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = copy_of(stopped, tmp_path / "run")
    step = run.read_status()["last_checkpoint_step"]
    assert ftdist_with_forked_ranks("resume", run.path) == 0
    assert capfd.readouterr().out.splitlines()[0] == f"resuming {run.path} after step {step} of 8"
    assert run.read_status()["state"] == "done"
    assert_same(run, reference_run(*SETTINGS))


@pytest.mark.slow  # the soak test covers this too
def test_a_kill_after_a_resume_records_the_missing_evaluation_once(stopped: RunDir, tmp_path: Path) -> None:
    """The evaluation that the stop skipped is recorded once, even if a second resume repeats it."""
    run = copy_of(stopped, tmp_path / "run")
    before = newest_step(run)
    again = start("resume", run.path)
    wait_until(again, lambda: newest_step(run) > before)
    kill_tree(again)
    succeed("resume", run.path)
    assert_same(run, reference_run(*SETTINGS))


def test_resume_names_a_damaged_checkpoint_and_uses_an_older_one(
    stopped: RunDir, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = copy_of(stopped, tmp_path / "run")
    newest, older = run.published_checkpoints()[-1], run.published_checkpoints()[-2]
    seed = random.randrange(10**6)
    draw = random.Random(seed)
    file = draw.choice(sorted(path for path in newest.rglob("*") if path.is_file() and path.name != "manifest.json"))
    content = bytearray(file.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    file.write_bytes(content)
    print(f"seed {seed}: {file}")
    capfd.readouterr()
    assert ftdist_with_forked_ranks("resume", run.path) == 0
    printed = capfd.readouterr().out
    assert f"checkpoint {newest.name} is damaged ({file.relative_to(newest)}" in printed
    assert "does not match its SHA-256 in manifest.json" in printed
    assert f"resumed after step {int(older.name[5:])}\n" in printed
    assert (newest.parent / f"bad-{newest.name}").is_dir()
    assert_same(run, reference_run(*SETTINGS))


@pytest.mark.slow
def test_resume_fails_and_deletes_nothing_if_every_checkpoint_is_damaged(stopped: RunDir, tmp_path: Path) -> None:
    run = copy_of(stopped, tmp_path / "run")
    for folder in run.published_checkpoints():
        (folder / "state.json").write_text("{}")
    record = run.metrics.read_text()
    done = ftdist("resume", run.path)
    assert done.code == EXIT_FAILED
    assert done.err.count("error:") == 1 and "no checkpoint of" in done.err and "state.json has 2 bytes" in done.err
    assert run.metrics.read_text() == record


@pytest.mark.slow  # test_crash_points.py replaces a checkpoint of the same step too
def test_a_stop_between_the_last_step_and_its_evaluation(tmp_path: Path) -> None:
    """The last checkpoint exists then, but its held-out loss does not."""
    overrides = (
        *SETTINGS,
        "batch.global_batch_size=48",
        "train.max_steps=2",
    )  # long steps, so that the signal comes in time
    run = RunDir(tmp_path / "run")
    process = start("train", *overrides, f"run_dir={run.path}")
    wait_until(process, lambda: newest_step(run) >= 1 and "eval" in run.metrics.read_text().splitlines()[-1])
    assert interrupt(process).code == EXIT_PREEMPTED
    assert run.read_status()["last_checkpoint_step"] == 2
    succeed("resume", run.path)
    assert_same(run, reference_run(*overrides))


def test_sigterm_before_the_first_step_saves_step_0(tmp_path: Path) -> None:
    """A batch system may send it so early. Under ZeRO-3 the optimizer states exist only after the first step."""
    run = RunDir(tmp_path / "run")
    process = start("train", *PADDED_ZERO3, f"run_dir={run.path}")
    wait_until(process, run.log_file(0, 0).is_file)
    done = interrupt(process, signal.SIGTERM)
    assert done.code == EXIT_PREEMPTED, done.out
    assert run.read_status()["last_checkpoint_step"] == 0
    assert ftdist_with_forked_ranks("resume", run.path) == 0
    assert "resumed after step 0" in run.log_file(0, 1).read_text()
    assert_same(run, finished_run(*PADDED_ZERO3))


def test_a_second_ctrl_c_ends_the_run_at_once(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    process = start("train", *SMOKE, *BARE, "train.max_steps=100000", "train.eval_every=null", f"run_dir={run.path}")
    wait_until(process, lambda: newest_step(run) >= 1)
    tree = psutil.Process(process.pid).children(recursive=True)
    assert len(tree) >= 3  # torchrun, two ranks and the W&B service
    for member in tree:
        member.suspend()  # so that they cannot save before the second signal
    process.send_signal(signal.SIGINT)
    wait_until(process, run.preempt.is_file)
    done = interrupt(process)
    assert done.code == EXIT_PREEMPTED and done.wall_s < 10
    assert "error:" not in done.out and f"ftdist resume {run.path}" in done.out
    assert not [member for member in tree if member.is_running()]
    status = run.read_status()
    assert (status["state"], status["exit_reason"]) == ("preempted", "ended immediately, before it could save")
