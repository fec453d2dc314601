"""ftdist as a user runs it (``python -m ftdist VERB …``, its own process), and what it leaves in a run directory."""

import fcntl
import hashlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

import psutil

from ftdist.base.json_files import read_json
from ftdist.run.rundir import RunDir

FTDIST = [sys.executable, "-m", "ftdist"]
MARK = "FTDIST_E2E"
"""Set in the environment of every process that a test starts, so that what is left of them is found."""
SMOKE = ("experiment=smoke", "train.num_samples=1", "train.sample_tokens=8")
PADDED_ZERO3 = (*SMOKE, "train.precision=fp32", "zero.stage=3", "model.pad_vocab_to_multiple_of=128", "track=disabled")
NOT_REPEATED = re.compile(r"time$|perf/|mem/")
TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str
    wall_s: float
    cpu_s: float
    """Processor time of the process and its children: does not depend on what else the machine does."""

    @property
    def text(self) -> str:
        return self.out + self.err


def environment(**variables: str) -> Dict[str, str]:
    return {**os.environ, MARK: str(os.getpid()), **variables}


def ftdist(
    *words: str | Path, cwd: Optional[Path] = None, stdin: str = "", command: Optional[List[str]] = None,
    timeout_s: float = TIMEOUT_S, **variables: str,
) -> Done:  # fmt: skip
    """Run ``ftdist WORDS…`` (or another command) to its end."""
    used, started = _cpu_s(), time.monotonic()
    done = subprocess.run(
        [*(command or FTDIST), *map(str, words)], cwd=cwd, input=stdin, capture_output=True, text=True,
        timeout=timeout_s, env=environment(**variables), start_new_session=True,
    )  # fmt: skip
    return Done(done.returncode, done.stdout, done.stderr, time.monotonic() - started, _cpu_s() - used)


def succeed(*words: str | Path, **how: Any) -> Done:
    """``ftdist`` that must end with 0."""
    done = ftdist(*words, **how)
    assert done.code == 0, f"{words} ended with {done.code}\n{done.text}{_logs(words)}"
    return done


def _logs(words: Any) -> str:
    places = [Path(str(word).removeprefix("run_dir=")) / "logs" for word in words]
    files = sorted(file for place in places if place.is_dir() for file in place.iterdir())
    return "".join(f"--- {file.name}\n{file.read_text(errors='replace')[-3000:]}" for file in files)


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def start(
    *words: str | Path, cwd: Optional[Path] = None, command: Optional[List[str]] = None
) -> "subprocess.Popen[str]":
    """``ftdist WORDS…`` under way. What it prints is short enough for a pipe that is read at the end."""
    return subprocess.Popen(
        [*(command or FTDIST), *map(str, words)], cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, env=environment(), start_new_session=True,
    )  # fmt: skip


def wait_until(process: "subprocess.Popen[str]", reached: Callable[[], bool], delay_s: float = 0.0) -> None:
    """Wait for a moment of a run, then ``delay_s`` more."""
    deadline = time.monotonic() + TIMEOUT_S
    while not reached():
        assert process.poll() is None, f"ended with {process.returncode} before that\n{process.communicate()[0]}"
        assert time.monotonic() < deadline, "the run did not come to that"
        time.sleep(0.002)
    time.sleep(delay_s)


def kill_tree(process: "subprocess.Popen[str]") -> None:
    """SIGKILL to the launcher, torchrun, the ranks and their helpers, as the end of a machine would be."""
    root = psutil.Process(process.pid)
    tree = [root, *root.children(recursive=True)]
    for member in tree:
        try:
            member.kill()
        except psutil.NoSuchProcess:  # the kernel was faster: it ends ranks whose torchrun is gone
            continue
    process.communicate(timeout=30)
    _, alive = psutil.wait_procs(tree, timeout=20)
    assert not alive


def left_processes() -> List[psutil.Process]:
    """Processes that tests of this worker have started and that still run, whoever their parent is now."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(MARK) == str(os.getpid()):
                found.append(process)
        except psutil.Error:  # gone, a zombie, or not ours
            continue
    return found


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


def interrupt(process: "subprocess.Popen[str]", number: int = signal.SIGINT) -> Done:
    """A signal to the launcher alone, as a terminal or a batch system sends it, and how it then ended."""
    started = time.monotonic()
    process.send_signal(number)
    out, _ = process.communicate(timeout=TIMEOUT_S)
    return Done(process.returncode, out, "", time.monotonic() - started, 0.0)
