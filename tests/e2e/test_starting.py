"""One config however the ranks are started, and what a run prints."""

import re
import subprocess
import sys
from pathlib import Path

from ftdist.errors import EXIT_USAGE
from ftdist.rundir import RunDir
from tests.e2e.cli import (
    SMOKE,
    assert_same,
    environment,
    finished_run,
    ftdist,
    kill_tree,
    newest_step,
    start,
    succeed,
    wait_until,
)  # fmt: skip

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "ftdist"]

# Every line that a smoke run may print; what is not ours is noise.
NUMBER = r"[\d.,]+(e[+-]?\d+)?k?"
LINES = [
    r"(cores|memory|GPUs|libraries) +\S.*",
    r"data \S+ \(prepared in [\d.]+ s\)",
    r"source +documents +tokens +trained +truncated +split +dropped +share",
    rf"fake +({NUMBER} +){{6}}{NUMBER}%",
    r"set +rows +documents +tokens +trained +rows filled +stop token",
    rf"(train|heldout) +({NUMBER} +){{4}}{NUMBER}% +<\|im_end\|>",
    r"batch +1 rows a rank × 2 accumulation × 2 ranks = 4 rows × 512 tokens = 2,048 tokens a step",
    r"ZeRO-2 +held in +where",
    r"(weights, activations|gradients|optimizer states|loss) +(bf16|fp32).*",
    r"\[\[ trained \]\]  not trained",
    r"<\|im_start\|>(user|assistant)",
    r"[a-z ]+[?.]<\|im_end\|>|\[\[[a-z ]+\.<\|im_end\|>\]\]",  # the sample: made-up words
    r"run +\S+",
    r"(loading|exporting) the model: [\d.]+ s",
    r"attention: documents; packed documents are isolated \(changing one moves the others' logits by 0\)",
    r"step \d: training waited [\d.]+ s for the checkpoint",
    r"step \d: held-out loss [\d.]+",
    rf"step \d/6  loss {NUMBER}  {NUMBER} tok/s  {NUMBER} GiB  lr {NUMBER}  norm {NUMBER}  ([\d:]+|\?) left",
    r"held-out loss +before +after +change +perplexity",
    rf"heldout +{NUMBER} +{NUMBER} +-{NUMBER} % +\d+ → \d+",
    r"question 1 +[a-z ]+\??",
    r"reference +\S.*",
    r" {12}[a-z ]+[?.…]*",  # the rest of a text
    r"model +\S+/export",
    r"W&B +offline; upload it with: wandb sync \S+/offline-run-\*",
    r"next +source \S+/bin/activate",  # where the environment is not active
    r"(next)? +ftdist chat \S+",
    r" +ftdist eval \S+ --checkpoint best",
    r" +ftdist status",
]


def test_a_run_prints_nothing_that_is_not_worth_it() -> None:
    printed = (finished_run(*SMOKE).path.parent / "output.txt").read_text()
    printed = re.sub(r"\nbase model .*?\nreference", "\nreference", printed, flags=re.DOTALL)  # any bytes at all
    strange = [
        line for line in printed.splitlines() if line and not any(re.fullmatch(known, line.rstrip()) for known in LINES)
    ]
    assert not strange
    # Also where a line of ours would let it through.
    assert not re.search(r"warn|deprecat|it/s|\d%\|", printed, re.IGNORECASE)
    assert len(printed.splitlines()) < 70


def test_torchrun_started_by_the_user(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    done = succeed("train", *SMOKE, f"run_dir={run.path}", command=TORCHRUN)
    assert done.out.count("tokens a step") == 1, "only rank 0 prints"
    assert run.read_status()["state"] == "done"
    assert_same(run, finished_run(*SMOKE))


def test_killed_under_torchrun_and_resumed_without(tmp_path: Path) -> None:
    """Nobody was there to write down that it had ended."""
    run = RunDir(tmp_path / "run")
    process = start("train", *SMOKE, f"run_dir={run.path}", command=TORCHRUN)
    wait_until(process, lambda: newest_step(run) >= 3)
    kill_tree(process)
    assert "dead?" in succeed("status", run.path).out
    succeed("resume", run.path)
    assert_same(run, finished_run(*SMOKE))


def test_what_a_dry_run_prints_can_be_typed(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "a run")
    done = succeed("train", *SMOKE, f"run_dir='{run.path}'", "--dry-run", cwd=tmp_path)
    assert run.read_status()["state"] == "frozen" and not run.metrics.exists()
    command = done.out.splitlines()[-1]
    typed = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert typed.returncode == 0, typed.stderr
    assert run.read_status()["state"] == "done"
    assert_same(run, finished_run(*SMOKE))


def test_a_finished_run_is_not_resumed() -> None:
    run = finished_run(*SMOKE)
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}
    done = ftdist("resume", run.path)
    assert done.code == EXIT_USAGE and done.text.count("error:") == 1 and "is done" in done.err
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*")} == before
