"""A thread of every rank that notices when the ranks hold each other up, says which one is to blame, and ends them.

A rank that waits in a collective for longer than ``launch.stall_timeout_s``, whose peer is gone or whose peer has failed
raises an alarm in the store where the ranks met. Every rank that sees it writes its Python stacks and its newest
collective to ``logs/``, tells the others where it stands, names the rank that is behind, and leaves.
"""

import contextlib
import faulthandler
import json
import os
import signal
import threading
import time
import traceback
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, Callable, Dict, Iterator, List, Optional

import psutil
import torch.distributed as dist

from ftdist.errors import EXIT_FAILED
from ftdist.rundir import RunDir, write_json
from ftdist.train.collectives import Collective, newest_collective
from ftdist.train.ranks import Ranks, rendezvous_store

POLL_S = 1.0
ANSWERS_S = 3.0
"""For the other ranks to say where they stand once there is an alarm."""
STORE_TIMEOUT_S = 10.0
"""A store that does not answer for so long is gone, and its host with it."""


@dataclass(frozen=True)
class Standing:
    """Where a rank is when there is an alarm."""

    rank: int
    where: str
    """Innermost line of the training code."""
    collective: Optional[Collective]
    failed: str = ""
    """The error that this rank has failed with itself."""


class Watchdog:
    """Of one rank. ``close`` it before the ranks part in good order."""

    def __init__(self, run: RunDir, ranks: Ranks, attempt: int, stall_timeout_s: float) -> None:
        self._run, self._ranks, self._attempt, self._limit_s = run, ranks, attempt, stall_timeout_s
        self._main = threading.get_ident()
        self._closed = threading.Event()
        self._store: Optional[dist.Store] = None
        if ranks.world_size == 1 or "MASTER_PORT" not in os.environ:
            return  # nobody to wait for
        self._store = dist.PrefixStore(f"ftdist/watch_{ranks.restart}", rendezvous_store(STORE_TIMEOUT_S))
        process = psutil.Process()
        self._put("process", ranks.rank, {"host": os.uname().nodename, "pid": process.pid, "born": process.create_time()})
        self._others = [rank for rank in range(ranks.world_size) if rank != ranks.rank]
        self._processes = {rank: json.loads(self._store.get(f"process/{rank}")) for rank in self._others}
        self._put("busy", ranks.rank, "starting")
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    @contextlib.contextmanager
    def patient(self, doing: str) -> Iterator[None]:
        """While this rank does what may take long (loading, saving …), the others wait for it as long as their
        collectives do: ``launch.timeout_s``."""
        self._put("busy", self._ranks.rank, doing)
        yield
        self._put("busy", self._ranks.rank, "")

    def close(self) -> None:
        self._closed.set()

    def fail(self, error: BaseException) -> Optional[Dict[str, Any]]:
        """This rank fails with ``error``: tell the others. Where a peer that is gone is the reason, returns what the
        launcher should show in its stead."""
        if self._store is None or self._closed.is_set():
            return None
        self.close()
        self._write_stacks("".join(traceback.format_exception(error)))
        gone = self._wait_for_gone() if lost_connection(error) else None
        with contextlib.suppress(RuntimeError):
            self._put("standing", self._ranks.rank, asdict(self._standing(f"{type(error).__name__}: {error}"[:500])))
            self._raise_alarm(f"rank {self._ranks.rank} failed")
        if gone is None:
            return None
        return self._blame(gone, f"{self._process_name(gone)} is gone without an error of its own: it was killed, or it "
                                 f"ended before the run did; rank {self._ranks.rank} then failed: {error}")  # fmt: skip

    # ---- the thread ------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        waited_s, waits_in = 0.0, None
        while not self._closed.wait(POLL_S):
            newest = newest_collective()
            under_way = newest.number if newest is not None and newest.waits else None
            # In ticks, not by the clock: a process that is stopped and goes on has not waited meanwhile.
            waited_s = waited_s + POLL_S if under_way is not None and under_way == waits_in else 0.0
            waits_in = under_way
            try:
                alarm = self._reason(waited_s)
            except RuntimeError:  # the store is gone: its host is
                alarm = "the store of the ranks does not answer"
            if alarm and not self._closed.is_set():
                self._leave(alarm)

    def _reason(self, waited_s: float) -> str:
        assert self._store is not None
        if self._store.check(["alarm"]):
            return self._store.get("alarm").decode()
        for rank in self._others:
            if self._is_gone(rank):
                return f"rank {rank} is gone"
        if waited_s >= self._limit_s and not any(self._read("busy", rank) for rank in self._others):
            return f"rank {self._ranks.rank} has waited for the others for {waited_s:.0f} s (launch.stall_timeout_s)"
        return ""

    def _leave(self, alarm: str) -> None:
        """Say what there is to say, and end this process."""
        self._write_stacks(f"alarm: {alarm}\n")
        standings, stalled = {}, False
        with contextlib.suppress(RuntimeError):
            self._raise_alarm(alarm)
            self._put("standing", self._ranks.rank, asdict(self._standing()))
            standings = self._collect_standings()
            stalled = not any(standing.failed for standing in standings.values())
        if not self._run.error_file(self._ranks.rank, self._attempt).exists():
            record = self._verdict(alarm, standings) if stalled else self._blame(self._ranks.rank, f"ended: {alarm}")
            write_json(self._run.error_file(self._ranks.rank, self._attempt), record)
        self._kill_stopped()
        os._exit(EXIT_FAILED)

    # ---- what is known of the others -------------------------------------------------------------------------------

    def _verdict(self, alarm: str, standings: Dict[int, Standing]) -> Dict[str, Any]:
        """The rank to blame and why: one that is gone, that is stopped, that does not answer, or that is behind."""
        waiting = "; ".join(_described(standings[rank]) for rank in sorted(standings))
        for rank in self._others:
            if rank not in standings:
                state = "is gone" if self._is_gone(rank) else self._state(rank)
                return self._blame(rank, f"{self._process_name(rank)} {state}; {alarm}. {waiting}", stalled=True)
        behind = furthest_behind(list(standings.values()))
        if behind is None:
            return self._blame(self._ranks.rank, f"the ranks wait for each other; {alarm}. {waiting}", stalled=True)
        text = f"holds the others up, at {behind.where}; {alarm}. {waiting}"
        return self._blame(behind.rank, text, stalled=True)

    def _blame(self, rank: int, text: str, stalled: bool = False) -> Dict[str, Any]:
        host = self._processes[rank]["host"] if rank in self._processes else os.uname().nodename
        return {"rank": rank, "host": host, "time": time.time(), "message": text, "known": True, "stalled": stalled,
                "reported_by": self._ranks.rank, "exit_code": EXIT_FAILED}  # fmt: skip

    def _collect_standings(self) -> Dict[int, Standing]:
        found: Dict[int, Standing] = {}
        deadline = time.monotonic() + ANSWERS_S
        while len(found) <= len(self._others) and time.monotonic() < deadline:
            for rank in range(self._ranks.world_size):
                if rank not in found and (value := self._read("standing", rank)):
                    last = value.pop("collective")
                    found[rank] = Standing(**value, collective=Collective(**last) if last else None)
            time.sleep(0.05)
        return found

    def _standing(self, failed: str = "") -> Standing:
        return Standing(self._ranks.rank, where_in_training(self._main), newest_collective(), failed)

    def _process(self, rank: int) -> Optional[psutil.Process]:
        """The process of a rank on this host; None where it is gone."""
        known = self._processes[rank]
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(known["pid"])
            if process.create_time() == known["born"] and process.status() != psutil.STATUS_ZOMBIE:
                return process
        return None

    def _here(self, rank: int) -> bool:
        return bool(self._processes[rank]["host"] == os.uname().nodename)

    def _is_gone(self, rank: int) -> bool:
        """Whether a rank on this host ended and left no error that the launcher would show."""
        return self._here(rank) and self._process(rank) is None and \
            not self._run.error_file(rank, self._attempt).exists()  # fmt: skip

    def _wait_for_gone(self) -> Optional[int]:
        """The rank whose end another rank's connection error is about. A process closes its connections a moment before
        it is gone."""
        for _ in range(20):
            gone = next((rank for rank in self._others if self._is_gone(rank)), None)
            if gone is not None:
                return gone
            time.sleep(0.05)
        return None

    def _state(self, rank: int) -> str:
        process = self._process(rank) if self._here(rank) else None
        if process is not None and process.status() in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP):
            return "is stopped (SIGSTOP, or a debugger)"
        return "does not answer: its process or its machine hangs"

    def _kill_stopped(self) -> None:
        # A stopped process does not see the SIGTERM that torchrun sends: it would wait for half a minute.
        for rank in self._others:
            process = self._process(rank) if self._here(rank) else None
            with contextlib.suppress(psutil.Error):
                if process is not None and process.status() == psutil.STATUS_STOPPED:
                    process.send_signal(signal.SIGKILL)

    def _process_name(self, rank: int) -> str:
        return f"its process {self._processes[rank]['pid']}"

    # ---- store and files -------------------------------------------------------------------------------------------

    def _put(self, kind: str, rank: int, value: Any) -> None:
        if self._store is not None:
            self._store.set(f"{kind}/{rank}", json.dumps(value))

    def _read(self, kind: str, rank: int) -> Any:
        assert self._store is not None
        key = f"{kind}/{rank}"
        return json.loads(self._store.get(key)) if self._store.check([key]) else None

    def _raise_alarm(self, alarm: str) -> None:
        assert self._store is not None
        self._store.compare_set("alarm", "", alarm)

    def _write_stacks(self, heading: str) -> None:
        path = self._run.stacks_file(self._ranks.rank, self._attempt)
        with contextlib.suppress(OSError), path.open("w", encoding="utf-8") as file:
            file.write(f"{heading}\nnewest collective: {newest_collective()}\n\n")
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)


def furthest_behind(standings: List[Standing]) -> Optional[Standing]:
    """The rank that has begun the fewest collectives, or the only one that waits in none; None where all are alike."""
    counts = {standing.rank: standing.collective.number if standing.collective else 0 for standing in standings}
    least = [standing for standing in standings if counts[standing.rank] == min(counts.values())]
    idle = [standing for standing in least if not (standing.collective and standing.collective.waits)]
    chosen = least if len(least) < len(standings) else idle
    return chosen[0] if chosen and len(chosen) < len(standings) else None


def lost_connection(error: BaseException) -> bool:
    """Whether a collective failed because of another rank, not of this one."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def where_in_training(thread: int) -> str:
    """``file:line in function`` of a thread: its innermost line in ftdist, else its innermost line."""
    import sys

    frame = sys._current_frames().get(thread)
    if frame is None:
        return "?"
    stack = traceback.extract_stack(frame)
    own = [line for line in stack if f"{os.sep}ftdist{os.sep}" in line.filename and "site-packages" not in line.filename]
    line = (own or stack)[-1]
    return f"{os.path.basename(line.filename)}:{line.lineno} in {line.name}"


def _described(standing: Standing) -> str:
    last = standing.collective
    doing = f"waits in {last}" if last and last.waits else f"is past {last}" if last else "has begun no collective"
    return f"rank {standing.rank} {doing}, at {standing.where}"


Patience = Callable[[str], "contextlib.AbstractContextManager[None]"]
