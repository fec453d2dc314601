"""One rank raises, ends early, is killed, stops or sleeps: the others notice in time, name it, and all ranks end."""

import json
import os
import resource
import signal
import time
from pathlib import Path
from typing import Dict, Tuple

import psutil
import pytest

from ftdist.base.errors import EXIT_FAILED
from ftdist.launch.attempt.failure import explain_failure
from ftdist.run.rundir import RunDir
from tests.faults.group import Fallen, Fault, at_step, run_group
from tests.faults.table import fault
from tests.helpers.tiny import freeze_tiny, save_tiny_model, tiny_config

STALL_S = 4
SETTINGS = ("train.max_steps=6", "train.num_samples=0", "train.export=false", "batch.micro_batch_size=2",
            "data.heldout_share=0", "data.max_heldout_documents=null", "zero.stage=2",
            f"launch.stall_timeout_s={STALL_S}")  # fmt: skip


def raise_error() -> None:
    raise ValueError("a planted error")


def sleep() -> None:
    time.sleep(3600)


def stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def leave() -> None:
    os._exit(0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stalls")
    save_tiny_model(folder / "model")
    return folder


def strike(folder: Path, path: Path, strikes: Fault, rank: int, *more: str) -> Tuple[RunDir, Fallen]:
    run = freeze_tiny(tiny_config(folder, *SETTINGS, *more), path / "run", 2)
    struck = path / "struck"
    return run, run_group(run, 2, {rank: at_step(3, strikes, struck)}, struck)


CASES: Dict[str, Tuple[Fault, int, str, float]] = {
    "raises": (raise_error, 1, "rank 1 on {host}: ValueError: a planted error", 0.0),
    "is killed": (kill, 1, "has ended without recording an error", 0.0),
    "ends with 0": (leave, 1, "has ended without recording an error", 0.0),
    "sleeps": (sleep, 1, "blocks the other ranks at", STALL_S),
    "is stopped": (stop, 1, "is stopped (SIGSTOP, or a debugger)", STALL_S),
    "is stopped, and holds the store": (stop, 0, "is stopped (SIGSTOP, or a debugger)", STALL_S),
}
"""The fault, the rank that it strikes, part of the message, and seconds within which no rank can notice."""


@pytest.mark.parametrize("case", CASES)
@fault(
    "training",
    "one rank raises, ends with 0, is killed, sleeps, or is stopped",
    "before step 4 on rank 1 of 2 (and on rank 0, which holds the store): an exception, "
    "os._exit(0), SIGKILL, time.sleep, SIGSTOP",
    "the message names that rank first, with the cause; stacks and the newest collective of "
    "the other ranks are in logs/; all ranks end: at once, or after launch.stall_timeout_s",
)
def test_the_rank_to_blame_is_named_first(folder: Path, tmp_path: Path, case: str) -> None:
    strikes, rank, said, unknowable_s = CASES[case]
    run, fallen = strike(folder, tmp_path, strikes, rank)
    error = explain_failure(run, 0, [run.logs / "no-torchrun.log"], EXIT_FAILED)
    print(f"{case}: ended after {fallen.ended_s}, codes {fallen.codes}\n{error}")
    assert str(error).startswith(f"rank {rank} on "), error
    assert said.format(host=os.uname().nodename) in str(error)
    other = 1 - rank
    assert fallen.codes[other] == EXIT_FAILED
    stacks = run.stacks_file(other, 0).read_text()
    assert "newest collective: all_reduce (number" in stacks and "in run_training" in stacks
    if strikes is sleep:
        assert "in sleep" in run.stacks_file(rank, 0).read_text()
    if strikes is raise_error:
        assert "a planted error" in run.stacks_file(rank, 0).read_text()
    assert fallen.ended_s[other] >= unknowable_s, "an alarm before its time"


def save_slowly() -> None:
    from ftdist.checkpoint.saver import Saver
    from ftdist.train.watchdog import Watchdog

    save, busy = Saver.save, Watchdog.busy

    def slow_save(saver: Saver, state: Dict[str, object]) -> None:
        time.sleep(2 * STALL_S)
        save(saver, state)

    def slowly_busy(watchdog: Watchdog, activity: str) -> None:
        busy(watchdog, activity)
        time.sleep(0 if activity else 1)  # from the end of its activity until it joins the others

    Saver.save, Watchdog.busy = slow_save, slowly_busy  # type: ignore[method-assign]


@fault(
    "training",
    "a rank takes long to save",
    "rank 1 sleeps during a save for twice launch.stall_timeout_s, and a second after it",
    "the other ranks wait, without an alarm",
)
def test_a_long_save_is_no_stall(folder: Path, tmp_path: Path) -> None:
    run = freeze_tiny(tiny_config(folder, *SETTINGS, "train.checkpoint_every=4"), tmp_path / "run", 2)
    fallen = run_group(run, 2, {1: save_slowly}, tmp_path / "struck")
    assert fallen.codes == {0: 0, 1: 0} and run.read_status()["state"] == "done"
    assert not list(run.logs.glob("*.stacks.txt"))


def run_out_of_memory() -> None:
    import torch

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + 2**26, hard))
    try:
        torch.empty(2**28)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@fault(
    "training",
    "one rank runs out of memory",
    "an allocation of 1 GiB under RLIMIT_AS",
    "the message lists what uses the memory and the one change that frees the most; all ranks end at once",
)
def test_a_failed_allocation_lists_what_uses_memory(folder: Path, tmp_path: Path) -> None:
    run, fallen = strike(folder, tmp_path, run_out_of_memory, 0, "train.gradient_checkpointing=none")
    text = str(explain_failure(run, 0, [run.logs / "no-torchrun.log"], EXIT_FAILED))
    print(text)
    assert fallen.codes == {0: EXIT_FAILED, 1: EXIT_FAILED}
    assert text.startswith(f"rank 0 on {os.uname().nodename}: memory ran out at step 4: ")
    assert "GiB for optimizer states" in text and "can't allocate memory" in text
    assert "train.gradient_checkpointing=full (frees about " in text
    report = json.loads((run.report / "report.json").read_text())
    assert report["state"] == "failed" and "memory ran out at step 4" in report["reason"], "rank 0 wrote its report"
