"""One rank raises, ends early, is killed, stops or sleeps: the others notice in time, name it, and the group ends."""

import os
import signal
import time
from pathlib import Path
from typing import Dict, Tuple

import pytest

from ftdist.errors import EXIT_FAILED
from ftdist.launch.failure import explain_failure
from ftdist.rundir import RunDir
from tests.faults.group import Fallen, Fault, at_step, run_group
from tests.tiny import freeze_tiny, save_tiny_model, tiny_config

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


def strike(folder: Path, path: Path, fault: Fault, rank: int, world: int = 2, *more: str) -> Tuple[RunDir, Fallen]:
    config = tiny_config(folder, *SETTINGS, *more)
    run = freeze_tiny(config, path / "run", world)
    struck = path / "struck"
    return run, run_group(run, world, {rank: at_step(3, fault, struck)}, struck)


CASES: Dict[str, Tuple[Fault, int, str, float]] = {
    "raises": (raise_error, 1, "rank 1 on {host}: ValueError: a planted error", 0.0),
    "is killed": (kill, 1, "is gone and left no error", 0.0),
    "ends with 0": (leave, 1, "is gone and left no error", 0.0),
    "sleeps": (sleep, 1, "holds the others up at", STALL_S),
    "is stopped": (stop, 1, "is stopped (SIGSTOP, or a debugger)", STALL_S),
    "is stopped, and holds the store": (stop, 0, "is stopped (SIGSTOP, or a debugger)", STALL_S),
}
"""Fault, the rank that it strikes, what is said of it, and seconds in which nobody can know."""


@pytest.mark.parametrize("case", CASES)
def test_the_rank_to_blame_is_named_first(folder: Path, tmp_path: Path, case: str) -> None:
    fault, rank, said, unknowable_s = CASES[case]
    run, fallen = strike(folder, tmp_path, fault, rank)
    error = explain_failure(run, 0, run.logs / "no-torchrun.log", EXIT_FAILED)
    print(f"{case}: ended after {fallen.ended_s}, codes {fallen.codes}\n{error}")
    assert str(error).startswith(f"rank {rank} on "), error
    assert said.format(host=os.uname().nodename) in str(error)
    other = 1 - rank
    assert fallen.codes[other] == EXIT_FAILED
    stacks = run.stacks_file(other, 0).read_text()
    assert "newest collective: all_reduce (number" in stacks and "in run_training" in stacks
    if fault is sleep:
        assert "in sleep" in run.stacks_file(rank, 0).read_text()
    if fault is raise_error:
        assert "a planted error" in run.stacks_file(rank, 0).read_text()
    if unknowable_s:  # a limit is not an aim: half as much again for a machine that does much else
        assert unknowable_s <= fallen.ended_s[other] < 1.5 * unknowable_s + 40
