"""A thread of every rank that detects when a rank blocks the others. It names this rank and ends all of them.

A rank raises an alarm in the store through which the ranks met, for one of three reasons:

- it has waited in a collective for ``launch.stall_timeout_s``,
- the process of another rank on its machine has ended,
- this rank itself fails.

Every rank that sees an alarm writes its Python stacks and its newest collective to ``logs/``, tells the other ranks its
position, and exits.
"""

import contextlib
import faulthandler
import json
import os
import signal
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

import psutil
import torch.distributed as dist

from ftdist.base.errors import EXIT_FAILED
from ftdist.base.json_files import write_json
from ftdist.base.process import find_process
from ftdist.parallel.collectives import Collectives, read_collectives
from ftdist.parallel.ranks import Ranks, rendezvous_store
from ftdist.run.rundir import RunDir

POLL_S = 1.0
POSITIONS_S = 3.0
"""Time that the other ranks have after an alarm to report their positions."""
STORE_TIMEOUT_S = 10.0
"""Seconds without an answer of the store, after which its machine is considered lost."""
STOPPED = (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)


@dataclass(frozen=True)
class RankPosition:
    """What a rank is doing when there is an alarm."""

    rank: int
    where: str
    """Innermost line of ftdist's own code, and the innermost line of all."""
    collectives: Optional[Collectives]
    """None if the rank has not started a collective."""
    failed: str = ""
    """The error of this rank, if it has failed."""

    def __str__(self) -> str:
        last = self.collectives
        if last is None:
            doing = "has not started a collective"
        else:
            doing = f"waits in {last}" if last.waits else f"has completed {last}"
        return f"rank {self.rank} {doing}, at {self.where}"


class Watchdog:
    """The watchdog of one rank. With a single rank it does nothing.

    It must be closed before the ranks end in a normal way.
    """

    def __init__(self, run: RunDir, ranks: Ranks, attempt: int, stall_timeout_s: float, start_timeout_s: float) -> None:
        """Start the thread.

        Args:
            attempt: Number of this start of the run.
            stall_timeout_s: Time that a rank may wait in a collective before it raises an alarm.
            start_timeout_s: Time to wait until the other ranks have started.
        """
        self._run, self._ranks, self._attempt, self._limit_s = run, ranks, attempt, stall_timeout_s
        self._main, self._closed = threading.get_ident(), threading.Event()
        self._activity, self._changes = "", 0
        """What this rank is busy with, and how often that has changed."""
        self._store: Optional[TimeoutStore] = None
        self._waited_s = 0.0
        """Time that this rank has waited in its present collective, or since another rank was last found busy."""
        self._activities: List[Any] = []
        """What the other ranks were busy with when this rank began to wait, and their numbers of changes."""
        self._others = [rank for rank in range(ranks.world_size) if rank != ranks.rank]
        if not self._others or "MASTER_PORT" not in os.environ:
            return
        self._store = TimeoutStore(f"ftdist/watch_{ranks.restart}")
        mine = psutil.Process()
        self._put("process", {"host": os.uname().nodename, "pid": mine.pid, "born": mine.create_time()})
        self.busy("starting")
        self._processes = {rank: self._store.wait_for(f"process/{rank}", start_timeout_s) for rank in self._others}
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def busy(self, activity: str) -> None:
        """Tell the other ranks that this rank starts an activity that may take long, for instance "saving".

        ``launch.stall_timeout_s`` does not apply until this method is called with "", which ends the activity. Until
        then the other ranks wait for this rank until their collectives time out after ``launch.timeout_s``.
        """
        if activity != self._activity and self._store is not None:
            self._activity, self._changes = activity, self._changes + 1
            self._put("busy", [activity, self._changes])

    def close(self) -> None:
        """End the watchdog without an alarm."""
        self._closed.set()

    def find_cause(self, error: BaseException) -> Optional[Dict[str, Any]]:
        """Return the error record of another rank whose end caused ``error`` on this rank.

        None if ``error`` is this rank's own, or if no other process has ended.
        """
        ended = self._wait_for_ended_rank() if self._store is not None and is_connection_error(error) else None
        if ended is None:
            return None
        return self._record(ended, f"{self._condition(ended)}. Rank {self._ranks.rank} then failed: {error}")

    def report_failure(self, error: BaseException) -> None:
        """Raise an alarm because this rank fails, so that the others do not wait for it."""
        if self._store is not None and not self._closed.is_set():
            self.close()
            self._write_stacks("".join(traceback.format_exception(error)))
            with contextlib.suppress(RuntimeError):
                self._put("position", asdict(self._position(f"{type(error).__name__}: {error}"[:500])))
                self._raise_alarm(f"rank {self._ranks.rank} failed")

    # ---- the thread ------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        waits_in = None
        while not self._closed.wait(POLL_S):
            newest = read_collectives()
            current = (newest.group, newest.number) if newest is not None and newest.waits else None
            # Polls are counted instead of reading the clock: while a process is stopped (SIGSTOP) it does not wait.
            self._waited_s = self._waited_s + POLL_S if current is not None and current == waits_in else 0.0
            waits_in = current
            try:
                alarm = self._find_alarm()
            except RuntimeError:
                alarm = "the machine of rank 0 does not answer"
            if alarm and not self._closed.is_set():
                self._exit(alarm)

    def _find_alarm(self) -> str:
        """Return an alarm that another rank has raised, or a new one; "" if there is none."""
        if alarm := self._read_alarm():
            return alarm
        for rank in self._others:
            if self._has_ended(rank):
                return f"the process of rank {rank} has ended"
        if POLL_S < self._waited_s < self._limit_s or not self._waited_s:
            return ""
        before, self._activities = self._activities, [self._read("busy", rank) for rank in self._others]
        if self._waited_s < self._limit_s:
            return ""
        if self._activities != before or any(activity for activity, _ in self._activities):
            self._waited_s = 0.0  # a rank that has ended its activity may need a moment to join the collective
            return ""
        return f"rank {self._ranks.rank} waited for {self._waited_s:.0f} s (launch.stall_timeout_s)"

    def _exit(self, alarm: str) -> None:
        """Report what this rank knows, and end its process."""
        self._write_stacks(f"alarm: {alarm}")
        positions: Dict[int, RankPosition] = {self._ranks.rank: self._position()}
        with contextlib.suppress(RuntimeError):
            self._raise_alarm(alarm)
            self._put("position", asdict(positions[self._ranks.rank]))
            positions |= self._collect_positions()
        error_file = self._run.error_file(self._ranks.rank, self._attempt)
        if not error_file.exists() and not any(position.failed for position in positions.values()):
            write_json(error_file, self._verdict(alarm, positions))
        self._kill_stopped_ranks()
        os._exit(EXIT_FAILED)

    def _verdict(self, alarm: str, positions: Dict[int, RankPosition]) -> Dict[str, Any]:
        """Return the error record of the responsible rank: one that does not answer, or else one that is behind."""
        everyone = "".join(f"\n  {positions[rank]}" for rank in sorted(positions))
        for rank in self._others:
            if rank not in positions:
                text = f"{self._condition(rank)}: {alarm}{everyone}"
                return self._record(rank, text, stalled=not self._has_ended(rank))
        behind = furthest_behind(list(positions.values()))
        if behind is None:
            return self._record(self._ranks.rank, f"the ranks wait for each other: {alarm}{everyone}", stalled=True)
        return self._record(behind.rank, f"blocks the other ranks at {behind.where}: {alarm}{everyone}", stalled=True)

    def _record(self, rank: int, text: str, stalled: bool = False) -> Dict[str, Any]:
        host = self._processes[rank]["host"] if rank in self._processes else os.uname().nodename
        return {"rank": rank, "host": host, "time": time.time(), "message": text, "known": True,
                "exit_code": EXIT_FAILED, "reported_by": self._ranks.rank, "stalled": stalled}  # fmt: skip

    # ---- what is known about the other ranks ------------------------------------------------------------------------

    def _collect_positions(self) -> Dict[int, RankPosition]:
        found: Dict[int, RankPosition] = {}
        deadline = time.monotonic() + POSITIONS_S
        while len(found) < self._ranks.world_size and time.monotonic() < deadline:
            for rank in range(self._ranks.world_size):
                if rank not in found and (value := self._read("position", rank)):
                    last = value.pop("collectives")
                    found[rank] = RankPosition(**value, collectives=Collectives(**last) if last else None)
            time.sleep(0.05)
        return found

    def _position(self, failed: str = "") -> RankPosition:
        return RankPosition(self._ranks.rank, where_in_training(self._main), read_collectives(), failed)

    def _process(self, rank: int) -> Optional[psutil.Process]:
        """Return the process of a rank on this machine, or None if it has ended."""
        known = self._processes[rank]
        return find_process(known["pid"], started_by=known["born"])

    def _is_local(self, rank: int) -> bool:
        return bool(self._processes[rank]["host"] == os.uname().nodename)

    def _has_ended(self, rank: int) -> bool:
        """Return whether a rank on this machine has ended without recording an error."""
        error_file = self._run.error_file(rank, self._attempt)
        return self._is_local(rank) and self._process(rank) is None and not error_file.exists()

    def _wait_for_ended_rank(self) -> Optional[int]:
        """Return a rank that has ended without recording an error, or None if there is none within a second.

        The connections of a process close a moment before the process is gone.
        """
        for _ in range(20):
            for rank in self._others:
                if self._has_ended(rank):
                    return rank
            time.sleep(0.05)
        return None

    def _condition(self, rank: int) -> str:
        """Return what is wrong with the process of a rank that does not answer."""
        if self._has_ended(rank):
            pid = self._processes[rank]["pid"]
            return f"its process {pid} has ended without recording an error: it was killed, or it exited early"
        process = self._process(rank) if self._is_local(rank) else None
        if process is not None and process.status() in STOPPED:
            return f"its process {process.pid} is stopped (SIGSTOP, or a debugger)"
        return "does not answer: its process or its machine hangs"

    def _kill_stopped_ranks(self) -> None:
        # A stopped process does not react to torchrun's SIGTERM. Torchrun would wait for it for half a minute.
        for rank in self._others:
            process = self._process(rank) if self._is_local(rank) else None
            with contextlib.suppress(psutil.Error):
                if process is not None and process.status() == psutil.STATUS_STOPPED:
                    process.send_signal(signal.SIGKILL)

    # ---- store and files -------------------------------------------------------------------------------------------

    def _put(self, kind: str, value: Any) -> None:
        assert self._store is not None
        self._store.put(f"{kind}/{self._ranks.rank}", value)

    def _read(self, kind: str, rank: int) -> Any:
        assert self._store is not None
        return self._store.read(f"{kind}/{rank}")

    def _read_alarm(self) -> str:
        assert self._store is not None
        return self._store.read("alarm") or ""

    def _raise_alarm(self, alarm: str) -> None:
        assert self._store is not None
        if not self._read_alarm():
            self._store.put("alarm", alarm)

    def _write_stacks(self, heading: str) -> None:
        path = self._run.stacks_file(self._ranks.rank, self._attempt)
        with contextlib.suppress(OSError), path.open("w", encoding="utf-8") as file:
            file.write(f"{heading}\nnewest collective: {read_collectives()}\n\n")
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)


class TimeoutStore:
    """JSON values in the store of the ranks, under a prefix.

    If the machine of the store does not answer, calls raise RuntimeError. The calls of torch itself would wait forever.
    """

    def __init__(self, prefix: str) -> None:
        self._store = dist.PrefixStore(prefix, rendezvous_store(STORE_TIMEOUT_S))
        self._calls = ThreadPoolExecutor(1, thread_name_prefix="watchdog-store")
        self._lost = False

    def put(self, key: str, value: Any) -> None:
        """Set the value of ``key``."""
        self._call(lambda: self._store.set(key, json.dumps(value)))

    def read(self, key: str) -> Any:
        """Return the value of ``key``, or None if it is not set."""
        return self._call(lambda: json.loads(self._store.get(key)) if self._store.check([key]) else None)

    def wait_for(self, key: str, timeout_s: float) -> Any:
        """Wait until ``key`` is set, and return its value."""
        self._store.wait([key], timedelta(seconds=timeout_s))
        return self.read(key)

    def _call(self, action: Callable[[], Any]) -> Any:
        if self._lost:
            raise RuntimeError("the store does not answer")
        try:
            return self._calls.submit(action).result(timeout=STORE_TIMEOUT_S)
        except FutureTimeout as error:
            self._lost = True
            raise RuntimeError("the store does not answer") from error


def furthest_behind(positions: List[RankPosition]) -> Optional[RankPosition]:
    """Return a rank that has not started a collective in which another rank waits, or None if there is no such rank."""
    for waiting in (position.collectives for position in positions):
        if waiting is not None and waiting.waits:
            for position in positions:
                if position.collectives is None or position.collectives.begun.get(waiting.group, 0) < waiting.number:
                    return position
    return None


def is_connection_error(error: BaseException) -> bool:
    """Return whether a collective failed because the connection to another rank was lost."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def where_in_training(thread: int) -> str:
    """Return the position of a thread as ``file:line in function``.

    It is the innermost line in ftdist, followed by the innermost line of all if that is in another package.
    """
    frame = sys._current_frames().get(thread)
    if frame is None:
        return "?"
    stack = traceback.extract_stack(frame)
    package = str(Path(__file__).parents[1])
    ours = [line for line in stack if line.filename.startswith(package)]
    lines = [*ours[-1:], *([] if stack[-1] in ours else stack[-1:])]
    return " → ".join(f"{Path(line.filename).name}:{line.lineno} in {line.name}" for line in lines)
