"""Faults of a whole run under its launcher: a stopped rank, a full disk, an unreachable tracker."""

import re
import time
from pathlib import Path
from typing import Iterator

import pytest

from ftdist.run.rundir import RunDir
from tests.faults.soak import fill, ranks_of, small_disk
from tests.faults.table import fault
from tests.helpers.cli import TIMEOUT_S, start, succeed, wait_until
from tests.helpers.ranks import free_port
from tests.helpers.runs import SMOKE, assert_same, newest_step, reference_run

RUN = (*SMOKE, "train.max_steps=60", "train.eval_every=null", "train.checkpoint_every=5", "batch.global_batch_size=8",
       "data.max_heldout_documents=8", "zero.stage=2")  # fmt: skip


@pytest.mark.slow  # test_stalls.py stops a forked rank
@fault(
    "training",
    "a rank is stopped, under launch.max_restarts=1",
    "SIGSTOP of rank 1 after some steps",
    "it is named and ended; all ranks start again from the last checkpoint: the run is the same",
)
def test_a_stopped_rank_restarts_the_run(tmp_path: Path) -> None:
    settings = (*RUN, "track=disabled", "launch.max_restarts=1", "launch.stall_timeout_s=5")
    run = RunDir(tmp_path / "run")
    process = start("train", *settings, f"run_dir={run.path}", cwd=tmp_path)
    wait_until(process, lambda: newest_step(run) >= 12)
    stopped = next(rank for rank in ranks_of(process) if rank.environ()["RANK"] == "1")
    struck = time.time()
    stopped.suspend()
    out, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, out
    error = run.error_file(0, 0).read_text()
    assert '"rank": 1' in error and f"its process {stopped.pid} is stopped" in error
    assert run.read_status()["attempt"] == 1 and "resumed after step" in out
    noticed = run.error_file(0, 0).stat().st_mtime - struck
    again = min(record["time"] for record in run.read_metrics() if record["time"] > struck + noticed)
    print(f"noticed after {noticed:.1f} s; the next step was done {again - struck:.1f} s after the fault")
    assert_same(run, reference_run(*settings))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk") as place:
        if place is None:
            pytest.skip("needs root and the right to mount a tmpfs")
        yield place


@pytest.mark.slow  # test_collective_saves.py tests this with forked ranks
@fault(
    "training",
    "the disk of the run is full for a while",
    "a tmpfs that is full for 3 s while checkpoints are due",
    "no step is lost; metrics.jsonl is complete; later checkpoints are saved; exit code 0",
)
@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_run_survives_a_full_disk(tmp_path: Path, disk: Path, method: str) -> None:
    run = RunDir(disk / "run")
    settings = (*RUN, "track=offline", f"method={method}")
    process = start("train", *settings, f"run_dir={run.path}", cwd=tmp_path)
    wait_until(process, lambda: newest_step(run) >= 7)
    with fill(disk):
        time.sleep(3.0)
        shown = newest_step(run)
    out, _ = process.communicate(timeout=TIMEOUT_S)
    print(f"at step {shown} in the record when the disk had room again\n{out}")
    assert process.returncode == 0, out
    assert re.search("could not be written", out)
    assert_same(run, reference_run(*RUN, f"method={method}"))


@pytest.mark.slow  # tests/unit/track/test_wandb.py tests this without a run
@fault(
    "tracking",
    "the W&B server is unreachable",
    "a port without a listener, and a key",
    "one line says so; exit code 0; metrics.jsonl is that of a run without W&B",
)
def test_an_unreachable_wandb_server_changes_nothing(tmp_path: Path) -> None:
    settings = (*SMOKE, "train.max_steps=6")
    run = RunDir(tmp_path / "run")
    server = f"http://127.0.0.1:{free_port()}"
    done = succeed("train", *settings, "track=online", f"run_dir={run.path}", cwd=tmp_path,
                   WANDB_BASE_URL=server, WANDB_API_KEY="0" * 40)  # fmt: skip
    assert done.text.count("W&B: ") == 1, done.text
    assert_same(run, reference_run(*settings))
