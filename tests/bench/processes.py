"""Run ``ftdist`` as a user does: on the command line, with its own cache."""

import os
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import List

import psutil

SAMPLE_EVERY_S = 0.25


@dataclass(frozen=True)
class Ran:
    started: float
    """Seconds since the epoch."""
    seconds: float
    peak_bytes: int
    """Peak memory of all processes together, shared pages counted once; 0 if it was not watched."""


def run_ftdist(folder: Path, cache: Path, arguments: List[str], watch_memory: bool = False) -> Ran:
    """Run ``ftdist ARGUMENTS`` in ``folder``. No process is left. Raises RuntimeError with the output if it fails."""
    own = {name: str(folder / "home") for name in ("HF_HOME", "WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR",
                                                   "WANDB_DATA_DIR")}  # fmt: skip
    environment = {**os.environ, **own, "FTDIST_CACHE": str(cache)}
    argv = [sys.executable, "-m", "ftdist", *arguments]
    output, peak = folder / "output.txt", 0
    with output.open("wb") as file:
        started, clock = time.time(), time.perf_counter()
        child = subprocess.Popen(
            argv, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT
        )
        try:
            if watch_memory:
                peak = _watch(child)
            code = child.wait()
            seconds = time.perf_counter() - clock
        finally:
            _end(child)
    if code:
        raise RuntimeError(f"ftdist {' '.join(arguments)} ended with {code}:\n{output.read_text(errors='replace')}")
    return Ran(started, seconds, peak)


def _watch(child: "subprocess.Popen[bytes]") -> int:
    """Sample the memory of a process and its descendants until it ends. Returns the peak."""
    parent, peak = psutil.Process(child.pid), 0
    while True:
        with suppress(psutil.Error):
            peak = max(peak, sum(_memory(process) for process in (parent, *parent.children(recursive=True))))
        with suppress(subprocess.TimeoutExpired):
            child.wait(SAMPLE_EVERY_S)
            return peak


def _memory(process: psutil.Process) -> int:
    try:
        full = process.memory_full_info()
        return getattr(full, "pss", full.rss)  # a page that n processes share counts 1/n in each of them (Linux)
    except psutil.Error:
        return 0  # has ended


def _end(child: "subprocess.Popen[bytes]") -> None:
    if child.poll() is None:
        with suppress(psutil.Error):
            for process in (*psutil.Process(child.pid).children(recursive=True), psutil.Process(child.pid)):
                process.kill()
        child.wait()
