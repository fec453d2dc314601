"""Random faults at random times, until the run is done. It must then equal the undisturbed run."""

import contextlib
import os
import random
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Optional

import psutil

from ftdist.base.errors import EXIT_DONE, EXIT_FAILED, EXIT_PREEMPTED, EXIT_USAGE
from ftdist.run.rundir import RunDir
from tests.helpers.cli import kill_tree, start
from tests.helpers.runs import SMOKE, assert_same, newest_step, reference_run

STEPS = 40
SETTINGS = (*SMOKE, f"train.max_steps={STEPS}", "train.eval_every=9", "train.checkpoint_every=4", "zero.stage=2",
            "batch.global_batch_size=4", "data.max_heldout_documents=32", "track=disabled", "launch.max_restarts=1",
            "data.builtin_general=false", "launch.stall_timeout_s=30",
            "model.config.attention_dropout=0.1")  # fmt: skip
FAULTS_IN_A_RUN = (4, 7)
ATTEMPT_S = 150.0
"""Time within which an attempt must end by itself."""
DISK_MIB = 64


@dataclass
class Soak:
    """One run that faults strike."""

    run: RunDir
    draw: random.Random
    disk: Optional[Path]
    """A small file system of its own that holds the run, or None if none can be mounted."""
    told: List[str] = field(default_factory=list)
    """The faults that struck, in order."""

    def to_its_end(self) -> None:
        faults = self.draw.randint(*FAULTS_IN_A_RUN)
        while True:
            words = ("resume", self.run.path) if self._begun() else ("train", *SETTINGS, f"run_dir={self.run.path}")
            process = start(*words, cwd=self.run.path.parent)
            deadline = time.monotonic() + ATTEMPT_S
            while faults and self._wait_for_a_moment(process):
                faults -= 1
                self._strike(process)
            out = _end(process, deadline)
            if process.returncode == EXIT_DONE:
                return
            # A second SIGTERM may come when the run has ended and its launcher no longer handles signals. If the disk
            # is full before the run directory is written, the command is refused.
            full = (EXIT_USAGE,) if "No space left on device" in out else ()
            ended = (EXIT_FAILED, EXIT_PREEMPTED, -signal.SIGKILL, -signal.SIGTERM, *full)
            assert process.returncode in ended, f"{process.returncode}\\n{out}"
            assert self.told, f"it failed without a fault\\n{out}"

    def _begun(self) -> bool:
        return self.run.provenance.is_file() or self.run.config.is_file()

    def _wait_for_a_moment(self, process: "subprocess.Popen[str]") -> bool:
        """Wait until a random time or shortly after a random step. Returns False if the run ended before."""
        step = newest_step(self.run) + self.draw.randint(1, 8) if self.draw.random() < 0.7 else None
        at = time.monotonic() + (self.draw.uniform(0.0, 8.0) if step is None else 30.0)
        while time.monotonic() < at and (step is None or newest_step(self.run) < step):
            if process.poll() is not None:
                return False
            time.sleep(0.02)
        time.sleep(self.draw.uniform(0.0, 0.3))
        return process.poll() is None

    def _strike(self, process: "subprocess.Popen[str]") -> None:
        faults: Dict[str, Callable[[subprocess.Popen[str]], None]] = {
            "SIGKILL of a rank": self._kill_rank, "SIGKILL of everything": kill_tree, "SIGTERM": self._terminate,
            "SIGTERM, and SIGKILL after 2 s": self._terminate_and_kill, "SIGSTOP and SIGCONT": self._pause,
        }  # fmt: skip
        if self.disk is not None:
            faults["a full disk"] = self._fill_disk
        name = self.draw.choice(list(faults))
        self.told.append(f"after step {newest_step(self.run)}: {name}")
        faults[name](process)

    def _kill_rank(self, process: "subprocess.Popen[str]") -> None:
        if ranks := ranks_of(process):
            with contextlib.suppress(psutil.Error):
                self.draw.choice(ranks).kill()

    def _terminate(self, process: "subprocess.Popen[str]") -> None:
        process.send_signal(signal.SIGTERM)
        if self.draw.random() < 0.5:
            time.sleep(self.draw.uniform(0.0, 1.0))
            process.send_signal(signal.SIGTERM)

    def _terminate_and_kill(self, process: "subprocess.Popen[str]") -> None:
        process.send_signal(signal.SIGTERM)
        time.sleep(2.0)
        with contextlib.suppress(psutil.NoSuchProcess):
            kill_tree(process)

    def _pause(self, process: "subprocess.Popen[str]") -> None:
        if ranks := ranks_of(process):
            rank = self.draw.choice(ranks)
            with contextlib.suppress(psutil.Error):
                rank.suspend()
            time.sleep(self.draw.uniform(0.2, 3.0))
            with contextlib.suppress(psutil.Error):
                rank.resume()

    def _fill_disk(self, process: "subprocess.Popen[str]") -> None:
        assert self.disk is not None
        with fill(self.disk):
            time.sleep(self.draw.uniform(0.5, 3.0))


def ranks_of(process: "subprocess.Popen[str]") -> List[psutil.Process]:
    """Return the living ranks of a launcher."""
    found = []
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if "RANK" in child.environ() and child.status() != psutil.STATUS_ZOMBIE:
                    found.append(child)
    return found


@contextlib.contextmanager
def fill(disk: Path) -> Iterator[None]:
    """Fill a disk within a ``with`` block."""
    ballast = disk / "ballast"
    try:
        with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        yield
    finally:
        ballast.unlink()


def _end(process: "subprocess.Popen[str]", deadline: float) -> str:
    try:
        return process.communicate(timeout=max(1.0, deadline - time.monotonic()))[0] or ""
    except subprocess.TimeoutExpired:
        kill_tree(process)
        raise AssertionError("an attempt did not end: a deadlock") from None
    except ValueError:  # its output was read when it was killed
        return ""


@contextlib.contextmanager
def small_disk(place: Path) -> Iterator[Optional[Path]]:
    """Mount a small file system at ``place``. Gives None if this process may not mount one."""
    place.mkdir()
    size = f"size={DISK_MIB}m"
    if (
        os.geteuid()
        or subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", place], capture_output=True).returncode
    ):
        yield None
        return
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def soak(folder: Path, seconds: float, seed: int) -> None:
    """Run and resume under random faults, one run after another, until ``seconds`` have passed."""
    draw, reference = random.Random(seed), reference_run(*SETTINGS)
    ends, number = time.monotonic() + seconds, 0
    with small_disk(folder / "disk") as disk:
        print(f"seed {seed}" + ("" if disk else "; no full disk: mounting a small one needs root"))
        while time.monotonic() < ends:
            here = (disk or folder) / f"round-{number}"
            here.mkdir()
            one = Soak(RunDir(here / "run"), draw, disk)
            try:
                one.to_its_end()
                assert_same(one.run, reference)
            finally:
                print(f"round {number}: " + "; ".join(one.told), flush=True)
            subprocess.run(["rm", "-rf", here], check=True)
            number += 1
