"""Where the wall time of a run went, over all its attempts.

Goodput is the time in optimizer steps that count, divided by all time in which the run was under way or waited in a
queue. A step does not count if the run later continued from an older checkpoint and repeated it.
"""

import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional

from ftdist.base.errors import FtdistError
from ftdist.run import timeline
from ftdist.run.rundir import RunDir, checkpoint_step
from ftdist.run.timeline import BEAT_S, ENDED, QUEUE, STEPS, Timeline

LOST = "lost"
"""Time in steps that do not count, or that were not finished."""


@dataclass
class Attempt:
    """One start of a run."""

    number: int
    begun: float
    """Seconds since 1970."""
    seconds: Dict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Seconds by phase, with ``LOST`` and without ``ENDED``."""
    first_step: Optional[int] = None
    """Number of steps that were done when it began to train. None if it did not begin."""
    last_step: Optional[int] = None
    state: Optional[str] = None
    """State at its end. None if it has not ended, or its end was not recorded."""
    ranks: Optional[int] = None
    """Number of ranks."""

    @property
    def value(self) -> Optional[float]:
        """The goodput of this attempt, from 0 to 1. None before the first record."""
        total = sum(self.seconds.values())
        return self.seconds.get(STEPS, 0.0) / total if total else None


@dataclass
class Goodput:
    """Where the wall time of a run went."""

    attempts: List[Attempt] = field(default_factory=list)
    stopped_s: float = 0.0
    """Seconds between attempts in which nothing ran and nothing waited in a queue."""
    lost_steps: int = 0
    saved_step: Optional[int] = None
    """The step of the newest checkpoint, if the run has ended: later steps do not count. None: all steps count."""

    @property
    def seconds(self) -> Dict[str, float]:
        """Seconds by phase, over all attempts, in the order of the phases."""
        order = [phase for phase in timeline.PHASES if phase != ENDED]
        order.insert(order.index(STEPS) + 1, LOST)
        sums = {phase: sum(attempt.seconds.get(phase, 0.0) for attempt in self.attempts) for phase in order}
        return {phase: seconds for phase, seconds in sums.items() if seconds}

    @property
    def total_s(self) -> float:
        """Seconds in which the run was under way or waited in a queue."""
        return sum(self.seconds.values())

    @property
    def value(self) -> Optional[float]:
        """The goodput, from 0 to 1. None before the first record."""
        return self.seconds.get(STEPS, 0.0) / self.total_s if self.total_s else None

    def as_dict(self) -> Dict[str, Any]:
        """Return the goodput as a part of a report."""
        attempts = [{**vars(attempt), "seconds": dict(attempt.seconds), "goodput": attempt.value}
                    for attempt in self.attempts]  # fmt: skip
        return {"goodput": self.value, "total_s": self.total_s, "seconds": self.seconds, "stopped_s": self.stopped_s,
                "lost_steps": self.lost_steps, "attempts": attempts}  # fmt: skip


def goodput_of(run: RunDir, alive: Optional[bool] = None, failing: bool = False) -> Goodput:
    """Return where the wall time of a run went. For a run of an older version, which has no timeline, there are no
    attempts.

    Args:
        alive: Whether the run is under way or waits in a queue. None: if it has not said that it ended, the time after
            its last record is not counted.
        failing: Whether it is about to end without another checkpoint.
    """
    status = run.read_status()
    ended = failing or alive is False or timeline.PHASE_OF_STATE.get(status.get("state", "")) == ENDED
    saved = _saved_step(run, status) if ended else None
    return account(timeline.read(run.timeline), time.time() if alive else None, saved)


def _saved_step(run: RunDir, status: Dict[str, Any]) -> int:
    """Return the step of the newest checkpoint. 0: there is none.

    A run that was killed just after it published a checkpoint has not written its step to status.json.
    """
    published: List[int] = []
    with suppress(FtdistError):  # one of them is a link or cannot be read
        published = [checkpoint_step(path) for path in run.published_checkpoints()]
    return max(published, default=int(status.get("last_checkpoint_step") or 0))


def account(records: Timeline, now: Optional[float], saved_step: Optional[int]) -> Goodput:
    """Divide the time among the phases.

    A record ends the phase before it. An attempt that ended without a record was killed: of the time until the next
    attempt it gets at most ``BEAT_S``. The rest was spent in the queue if a scheduler has started the run again, and is
    not counted otherwise.

    Args:
        records: The timeline, in the order of time.
        now: The time until which to count. None: the time of the last record.
        saved_step: Step of the newest checkpoint of a run that has ended: later steps are lost. None: no step is lost
            as long as it is not done again.
    """
    result = Goodput(saved_step=saved_step)
    kept = _kept_steps(records, saved_step)
    for number, record in enumerate(records):
        attempt = _attempt_of(result, record)
        following = records[number + 1] if number + 1 < len(records) else None
        end = float(following["time"]) if following is not None else float(now or 0)
        seconds, phase = max(0.0, end - float(record["time"])), str(record["phase"])
        if phase not in (ENDED, QUEUE) and following is not None and following["attempt"] != record["attempt"]:
            gap = max(0.0, seconds - BEAT_S)
            seconds -= gap
            if following.get("requeued"):
                attempt.seconds[QUEUE] += gap
            else:
                result.stopped_s += gap
        if phase == ENDED:
            if following is not None and following.get("requeued"):
                attempt.seconds[QUEUE] += seconds
            else:
                result.stopped_s += seconds
        elif phase == STEPS:
            _add_steps(result, attempt, record, following, seconds, kept[number])
        else:
            attempt.seconds[phase] += seconds
    return result


def _attempt_of(result: Goodput, record: Dict[str, Any]) -> Attempt:
    """Return the attempt that a record belongs to, with what the record says about it."""
    known = [attempt for attempt in result.attempts if attempt.number == record["attempt"]]
    if not known:
        result.attempts.append(Attempt(record["attempt"], float(record["time"])))
    attempt = (known or result.attempts)[-1]
    attempt.state = record.get("state", attempt.state)
    attempt.ranks = record.get("ranks", attempt.ranks)
    if "step" in record:
        attempt.first_step = record["step"] if attempt.first_step is None else attempt.first_step
        attempt.last_step = record["step"]
    return attempt


def _kept_steps(records: Timeline, saved_step: Optional[int]) -> List[float]:
    """Return, for each record, how many steps (counted from the first) were not repeated after it."""
    limit = float("inf") if saved_step is None else float(saved_step)
    found = []
    for record in reversed(records):
        found.append(limit)
        limit = min(limit, record.get("step", limit))
    return found[::-1]


def _add_steps(
    result: Goodput, attempt: Attempt, record: Dict[str, Any], following: Optional[Dict[str, Any]], seconds: float,
    kept: float,
) -> None:  # fmt: skip
    """Divide the time from a record in ``steps`` to the next one among steps that count and lost ones."""
    first = record.get("step", 0)
    under_way = following is None and result.saved_step is None
    last = first if under_way else (following or {}).get("step", -1)
    if last > first:
        lost = max(0.0, last - max(float(first), kept))
        result.lost_steps += int(lost)
        share = lost / (last - first)
    else:  # the newest step is under way; or it was never finished, because the run ended or went back
        share = float(last < first)
    attempt.seconds[LOST] += seconds * share
    attempt.seconds[STEPS] += seconds * (1 - share)
