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
from typing import Any, Callable, Dict, Optional, Tuple

from ftdist.base.errors import EXIT_DONE
from ftdist.base.json_files import read_json
from ftdist.config.frozen import load_config
from ftdist.launch.attempt.command import ranks_env
from ftdist.run.rundir import RunDir
from tests.helpers.cli import succeed
from tests.helpers.group import start_attempt

SMOKE = ("experiment=smoke", "train.num_samples=1", "train.sample_tokens=8")
PADDED_ZERO3 = (*SMOKE, "train.precision=fp32", "zero.stage=3", "model.pad_vocab_to_multiple_of=128", "track=disabled")
BARE = ("track=disabled", "report.forgetting.texts=0", "data.builtin_general=false", "report.at_end=false")
"""Leave out W&B, forgetting, general texts and the report, which take a third of a short run."""
NOT_REPEATED = re.compile(r"time$|perf/|mem/")


def wait_for_step(run: RunDir, step: int, launcher: "Optional[subprocess.Popen[str]]" = None) -> None:
    """Wait until ``status.json`` says that this step is done. Fails at once if the run or its launcher has ended."""
    deadline = time.monotonic() + 600
    while int((status := run.read_status()).get("step", 0)) < step:
        assert status.get("state") != "failed", status
        assert launcher is None or launcher.poll() is None, launcher.communicate()[0]
        assert time.monotonic() < deadline, status
        time.sleep(0.05)


def newest_step(run: RunDir) -> int:
    """Return the newest step in metrics.jsonl, or −1 if there is none. Step 0 is the evaluation before training."""
    return max((record["step"] for record in run.read_metrics()), default=-1)


def result(run: RunDir) -> Dict[str, Any]:
    """Return everything that must be equal, bit for bit, in two runs of one config."""
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
    """Compare two runs part by part, so that a failure names the part that differs."""
    found, expected = result(run), result(reference)
    for part, value in expected.items():
        assert found[part] == value, f"{part} differs from the undisturbed run"
    assert not [path.name for path in run.path.iterdir() if path.name.startswith(".")], "temporary files are left"


def finished_run(*overrides: str) -> RunDir:
    """Return a finished run with these overrides. All tests and workers share one such run: do not change it.

    Its output is in ``output.txt`` beside the run directory.
    """

    def make(run: RunDir) -> None:
        done = succeed("train", *overrides, f"run_dir={run.path}", cwd=run.path.parent)
        (run.path.parent / "output.txt").write_text(done.text)

    return _made_once(overrides, make)


def reference_run(*overrides: str) -> RunDir:
    """Return a run that ``finished_run`` would give, but made in less time: on forked ranks and without W&B.

    Its metrics, samples, checkpoints and export are equal, bit for bit.
    """

    def make(run: RunDir) -> None:
        succeed("train", *overrides, "track=disabled", f"run_dir={run.path}", "--dry-run", cwd=run.path.parent)
        config = load_config(run.config)
        world_size = config.launch.nproc_per_node or 1
        group = start_attempt(run, world_size, env=ranks_env(config))
        assert group.wait(600) == dict.fromkeys(range(world_size), EXIT_DONE)

    return _made_once(("reference", *overrides), make)


def _made_once(key: Tuple[str, ...], make: Callable[[RunDir], None]) -> RunDir:
    home = Path(os.environ["FTDIST_CACHE"]).parent / "runs" / hashlib.sha256(repr(key).encode()).hexdigest()[:12]
    home.mkdir(parents=True, exist_ok=True)
    run, finished = RunDir(home / "run"), home / "finished"
    with (home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not finished.is_file():
            shutil.rmtree(run.path, ignore_errors=True)
            make(run)
            finished.touch()
    return run


def copy_of(run: RunDir, path: Path) -> RunDir:
    """Return a copy of a run directory that a test may change. Nothing in a run directory contains its own path."""
    shutil.copytree(run.path, path, symlinks=True)
    return RunDir(path)
