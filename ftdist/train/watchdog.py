"""A thread of every rank that notices when the ranks hold each other up, says which one is to blame, and ends them.

A rank raises an alarm, in the store where the ranks met, when it has waited in a collective for
``launch.stall_timeout_s``, when a rank on its machine is gone, or when it fails itself. Every rank that sees an alarm
writes its Python stacks and newest collective to ``logs/``, tells the others where it stands, and leaves.
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
from ftdist.parallel.collectives import Collectives, read_collectives
from ftdist.parallel.ranks import Ranks, rendezvous_store
from ftdist.run.rundir import RunDir

POLL_S = 1.0
ANSWERS_S = 3.0
"""For the other ranks to say where they stand once there is an alarm."""
STORE_TIMEOUT_S = 10.0
"""A store that does not answer for so long is gone, and its machine with it."""
STOPPED = (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)


@dataclass(frozen=True)
class Standing:
    """Where a rank is when there is an alarm."""

    rank: int
    where: str
    """Innermost line of the training code."""
    collectives: Optional[Collectives]
    failed: str = ""
    """The error that this rank has failed with itself."""

    def __str__(self) -> str:
        last = self.collectives
        doing = f"waits in {last}" if last and last.waits else f"is past {last}" if last else "has begun no collective"
        return f"rank {self.rank} {doing}, at {self.where}"


class Watchdog:
    """Of one rank; with a single rank it does nothing. ``close`` it before the ranks part in good order."""

    def __init__(self, run: RunDir, ranks: Ranks, attempt: int, stall_timeout_s: float, start_timeout_s: float) -> None:
        self._run, self._ranks, self._attempt, self._limit_s = run, ranks, attempt, stall_timeout_s
        self._main, self._busy, self._closed = threading.get_ident(), "", threading.Event()
        self._store: Optional[PatientStore] = None
        self._others = [rank for rank in range(ranks.world_size) if rank != ranks.rank]
        if not self._others or "MASTER_PORT" not in os.environ:
            return
        self._store = PatientStore(f"ftdist/watch_{ranks.restart}")
        mine = psutil.Process()
        self._put("process", {"host": os.uname().nodename, "pid": mine.pid, "born": mine.create_time()})
        self.busy("starting")
        self._processes = {rank: self._store.wait_for(f"process/{rank}", start_timeout_s) for rank in self._others}
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def busy(self, doing: str) -> None:
        """From now on this rank does what may take long (loading, saving …; "" ends that). The others wait for it as
        long as their collectives do, ``launch.timeout_s``."""
        if doing != self._busy and self._store is not None:
            self._busy = doing
            self._put("busy", doing)

    def close(self) -> None:
        self._closed.set()

    def blame_for(self, error: BaseException) -> Optional[Dict[str, Any]]:
        """Whose fault it is that this rank fails with ``error``: an error record of a rank that is gone, if one is.
        None where the error is this rank's own."""
        gone = self._wait_for_gone() if self._store is not None and lost_connection(error) else None
        if gone is None:
            return None
        return self._record(gone, f"{self._state(gone)}. Rank {self._ranks.rank} then failed: {error}")

    def announce(self, error: BaseException) -> None:
        """This rank fails: the others need not wait for it."""
        if self._store is not None and not self._closed.is_set():
            self.close()
            self._write_stacks("".join(traceback.format_exception(error)))
            with contextlib.suppress(RuntimeError):
                self._put("standing", asdict(self._standing(f"{type(error).__name__}: {error}"[:500])))
                self._raise_alarm(f"rank {self._ranks.rank} failed")

    # ---- the thread ------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        waited_s, waits_in = 0.0, None
        while not self._closed.wait(POLL_S):
            now = read_collectives()
            under_way = (now.group, now.number) if now is not None and now.waits else None
            # In ticks, not by the clock: a process that was stopped and goes on has not waited meanwhile.
            waited_s = waited_s + POLL_S if under_way is not None and under_way == waits_in else 0.0
            waits_in = under_way
            try:
                alarm = self._why_alarm(waited_s)
            except RuntimeError:
                alarm = "the machine of rank 0 does not answer"
            if alarm and not self._closed.is_set():
                self._leave(alarm)

    def _why_alarm(self, waited_s: float) -> str:
        if alarm := self._alarm():
            return alarm
        for rank in self._others:
            if self._is_gone(rank):
                return f"rank {rank} is gone"
        if waited_s >= self._limit_s and not any(self._read("busy", rank) for rank in self._others):
            return f"rank {self._ranks.rank} waited for {waited_s:.0f} s (launch.stall_timeout_s)"
        return ""

    def _leave(self, alarm: str) -> None:
        """Say what there is to say, and end this process."""
        self._write_stacks(f"alarm: {alarm}")
        standings: Dict[int, Standing] = {self._ranks.rank: self._standing()}
        with contextlib.suppress(RuntimeError):
            self._raise_alarm(alarm)
            self._put("standing", asdict(standings[self._ranks.rank]))
            standings |= self._collect_standings()
        error_file = self._run.error_file(self._ranks.rank, self._attempt)
        if not error_file.exists() and not any(standing.failed for standing in standings.values()):
            write_json(error_file, self._verdict(alarm, standings))
        self._kill_stopped()
        os._exit(EXIT_FAILED)

    def _verdict(self, alarm: str, standings: Dict[int, Standing]) -> Dict[str, Any]:
        """The error record of the rank to blame: one that does not answer, else the one that is behind."""
        everyone = "".join(f"\n  {standings[rank]}" for rank in sorted(standings))
        for rank in self._others:
            if rank not in standings:
                return self._record(rank, f"{self._state(rank)}: {alarm}{everyone}", stalled=not self._is_gone(rank))
        behind = furthest_behind(list(standings.values()))
        if behind is None:
            return self._record(self._ranks.rank, f"the ranks wait for each other: {alarm}{everyone}", stalled=True)
        return self._record(behind.rank, f"holds the others up at {behind.where}: {alarm}{everyone}", stalled=True)

    def _record(self, rank: int, text: str, stalled: bool = False) -> Dict[str, Any]:
        host = self._processes[rank]["host"] if rank in self._processes else os.uname().nodename
        return {"rank": rank, "host": host, "time": time.time(), "message": text, "known": True,
                "exit_code": EXIT_FAILED, "reported_by": self._ranks.rank, "stalled": stalled}  # fmt: skip

    # ---- what is known of the others -------------------------------------------------------------------------------

    def _collect_standings(self) -> Dict[int, Standing]:
        found: Dict[int, Standing] = {}
        deadline = time.monotonic() + ANSWERS_S
        while len(found) < self._ranks.world_size and time.monotonic() < deadline:
            for rank in range(self._ranks.world_size):
                if rank not in found and (value := self._read("standing", rank)):
                    last = value.pop("collectives")
                    found[rank] = Standing(**value, collectives=Collectives(**last) if last else None)
            time.sleep(0.05)
        return found

    def _standing(self, failed: str = "") -> Standing:
        return Standing(self._ranks.rank, where_in_training(self._main), read_collectives(), failed)

    def _process(self, rank: int) -> Optional[psutil.Process]:
        """The living process of a rank on this machine."""
        known = self._processes[rank]
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(known["pid"])
            if process.create_time() == known["born"] and process.status() != psutil.STATUS_ZOMBIE:
                return process
        return None

    def _here(self, rank: int) -> bool:
        return bool(self._processes[rank]["host"] == os.uname().nodename)

    def _is_gone(self, rank: int) -> bool:
        """Whether a rank of this machine ended and left no error of its own."""
        error_file = self._run.error_file(rank, self._attempt)
        return self._here(rank) and self._process(rank) is None and not error_file.exists()

    def _wait_for_gone(self) -> Optional[int]:
        # A process closes its connections a moment before it is gone.
        for _ in range(20):
            for rank in self._others:
                if self._is_gone(rank):
                    return rank
            time.sleep(0.05)
        return None

    def _state(self, rank: int) -> str:
        if self._is_gone(rank):
            return (
                f"its process {self._processes[rank]['pid']} is gone and left no error: it was killed, or ended early"
            )
        process = self._process(rank) if self._here(rank) else None
        if process is not None and process.status() in STOPPED:
            return f"its process {process.pid} is stopped (SIGSTOP, or a debugger)"
        return "does not answer: its process or its machine hangs"

    def _kill_stopped(self) -> None:
        # A stopped process does not see torchrun's SIGTERM, which would wait for it for half a minute.
        for rank in self._others:
            process = self._process(rank) if self._here(rank) else None
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

    def _alarm(self) -> str:
        assert self._store is not None
        return self._store.read("alarm") or ""

    def _raise_alarm(self, alarm: str) -> None:
        assert self._store is not None
        if not self._alarm():
            self._store.put("alarm", alarm)

    def _write_stacks(self, heading: str) -> None:
        path = self._run.stacks_file(self._ranks.rank, self._attempt)
        with contextlib.suppress(OSError), path.open("w", encoding="utf-8") as file:
            file.write(f"{heading}\nnewest collective: {read_collectives()}\n\n")
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)


class PatientStore:
    """JSON values under a prefix of the ranks' store. A store whose machine does not answer raises RuntimeError, where
    torch's own calls wait for ever."""

    def __init__(self, prefix: str) -> None:
        self._store = dist.PrefixStore(prefix, rendezvous_store(STORE_TIMEOUT_S))
        self._calls = ThreadPoolExecutor(1, thread_name_prefix="watchdog-store")
        self._lost = False

    def put(self, key: str, value: Any) -> None:
        self._call(lambda: self._store.set(key, json.dumps(value)))

    def read(self, key: str) -> Any:
        """None where there is nothing."""
        return self._call(lambda: json.loads(self._store.get(key)) if self._store.check([key]) else None)

    def wait_for(self, key: str, timeout_s: float) -> Any:
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


def furthest_behind(standings: List[Standing]) -> Optional[Standing]:
    """The rank that has not come to the collective that another one waits in; None where all have."""
    for waiting in (standing.collectives for standing in standings):
        if waiting is not None and waiting.waits:
            for standing in standings:
                if standing.collectives is None or standing.collectives.begun.get(waiting.group, 0) < waiting.number:
                    return standing
    return None


def lost_connection(error: BaseException) -> bool:
    """Whether a collective failed because of another rank, not of this one."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def where_in_training(thread: int) -> str:
    """``file:line in function`` of a thread: its innermost line in ftdist, and its innermost of all."""
    frame = sys._current_frames().get(thread)
    if frame is None:
        return "?"
    stack = traceback.extract_stack(frame)
    package = str(Path(__file__).parents[1])
    ours = [line for line in stack if line.filename.startswith(package)]
    lines = [*ours[-1:], *([] if stack[-1] in ours else stack[-1:])]
    return " → ".join(f"{Path(line.filename).name}:{line.lineno} in {line.name}" for line in lines)
