"""Run directories that tests start from, and the comparison of two runs bit for bit."""

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any, Dict, Optional

from ftdist.run.rundir import RunDir, read_json
from tests.helpers.cli import succeed

SMOKE = ("experiment=smoke", "train.num_samples=1", "train.sample_tokens=8")
PADDED_ZERO3 = (*SMOKE, "train.precision=fp32", "zero.stage=3", "model.pad_vocab_to_multiple_of=128", "track=disabled")
NOT_REPEATED = re.compile(r"time$|perf/|mem/")


def wait_for_step(run: RunDir, step: int, launcher: "Optional[subprocess.Popen[str]]" = None) -> None:
    """Wait until ``status.json`` says that this step is done. Fails at once if the run or its launcher has ended."""
    deadline = time.monotonic() + 240
    while int((status := run.read_status()).get("step", 0)) < step:
        assert status.get("state") != "failed", status
        assert launcher is None or launcher.poll() is None, launcher.communicate()[0]
        assert time.monotonic() < deadline, status
        time.sleep(0.05)


def newest_step(run: RunDir) -> int:
    """The newest step in metrics.jsonl (0: evaluated before the first step); −1 where there is none yet."""
    return max((record["step"] for record in run.read_metrics()), default=-1)


def result(run: RunDir) -> Dict[str, Any]:
    """Everything in which two runs of one config must agree, bit for bit."""
    last = run.find_checkpoint("last")
    manifest = read_json(last / "manifest.json")
    files = {name: entry["sha256"] for name, entry in manifest["files"].items() if name != "state.json"}
    state = {name: value for name, value in read_json(last / "state.json").items() if name != "run_id"}
    return {
        "metrics": [_repeated(record) for record in run.read_metrics()],
        "samples": [_repeated(json.loads(line)) for line in run.samples.read_text().splitlines()],
        "weights": {path.name: _sha256(path) for path in sorted(run.export.glob("*.safetensors"))},
        "model card": (run.export / "README.md").read_text(),
        "best": run.find_checkpoint("best").name,
        "held-out loss of the last checkpoint": manifest["eval_loss"],
        "checkpoint": files,
        "state": state,
    }


def _repeated(record: Dict[str, Any]) -> Dict[str, Any]:
    return {name: value for name, value in record.items() if not NOT_REPEATED.match(name)}


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def assert_same(run: RunDir, reference: RunDir) -> None:
    """Part for part, so that a failure says what differs."""
    found, expected = result(run), result(reference)
    for part, value in expected.items():
        assert found[part] == value, f"{part} differs from the run that nobody interrupted"
    assert not [path.name for path in run.path.iterdir() if path.name.startswith(".")], "temporary files are left"


def finished_run(*overrides: str) -> RunDir:
    """A run of these overrides that nobody interrupted: made once, shared by all tests and workers, never changed.

    What it printed is in ``output.txt`` beside it.
    """
    home = Path(os.environ["FTDIST_CACHE"]).parent / "e2e" / hashlib.sha256(repr(overrides).encode()).hexdigest()[:12]
    home.mkdir(parents=True, exist_ok=True)
    run, output = RunDir(home / "run"), home / "output.txt"
    with (home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not output.is_file():
            shutil.rmtree(run.path, ignore_errors=True)
            done = succeed("train", *overrides, f"run_dir={run.path}", cwd=home)
            output.write_text(done.text)
    return run


def copy_of(run: RunDir, path: Path) -> RunDir:
    """A run directory to change. A run can be moved: nothing in it names its own place."""
    shutil.copytree(run.path, path, symlinks=True)
    return RunDir(path)
