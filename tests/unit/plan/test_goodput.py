"""Goodput: timelines written by hand, with known pauses, kills, requeues and rollbacks."""

from pathlib import Path
from typing import Any, Dict, List, Optional

import pytest

from ftdist.plan.goodput import LOST, Goodput, account, goodput_of
from ftdist.run import timeline
from ftdist.run.rundir import RunDir
from ftdist.run.timeline import (
    BEAT_S,
    ENDED,
    EVALUATING,
    EXPORTING,
    LOADING,
    PREPARING,
    QUEUE,
    SAVING,
    STARTING,
    STEPS,
)  # fmt: skip

START = [(0, 0, PREPARING), (5, 0, STARTING), (7, 0, LOADING), (10, 0, STEPS, 0)]


def _records(*events: Any) -> List[Dict[str, Any]]:
    found = []
    for time, attempt, phase, *rest in events:
        fields: Dict[str, Any] = {"step": rest[0]} if rest and isinstance(rest[0], int) else rest[0] if rest else {}
        found.append({"time": float(time), "attempt": attempt, "phase": phase, **fields})
    return found


def _account(*events: Any, now: Optional[float] = None, saved: Optional[int] = None) -> Goodput:
    return account(_records(*events), now, saved)


def test_an_undisturbed_run() -> None:
    found = _account(*START, (30, 0, EVALUATING, 4), (36, 0, STEPS, 4), (56, 0, SAVING, 8), (58, 0, STEPS, 8),
                     (58, 0, EXPORTING), (70, 0, ENDED, {"state": "done"}), saved=8)  # fmt: skip
    assert found.seconds == {PREPARING: 5, STARTING: 2, LOADING: 3, STEPS: 40, EVALUATING: 6, SAVING: 2, EXPORTING: 12}
    assert (found.total_s, found.value, found.lost_steps, found.stopped_s) == (70, 40 / 70, 0, 0)
    [attempt] = found.attempts
    assert (attempt.number, attempt.begun, attempt.first_step, attempt.last_step, attempt.state) == (0, 0, 0, 8, "done")


def test_steps_that_are_done_again_are_lost() -> None:
    """Ten steps of 2 s, a failure, and a resume from step 6: four steps and the unfinished one are lost."""
    failure = [*START, (30, 0, STEPS, 10), (31, 0, ENDED, {"state": "failed"})]
    resumed = [(100, 1, STARTING), (103, 1, LOADING), (110, 1, STEPS, 6), (130, 1, STEPS, 16)]
    found = _account(*failure, *resumed, (130, 1, ENDED, {"state": "done"}), saved=16)
    assert found.seconds == {PREPARING: 5, STARTING: 5, LOADING: 10, STEPS: 12 + 20, LOST: 8 + 1}
    assert (found.lost_steps, found.stopped_s, found.total_s) == (4, 69, 61)
    alone = _account(*failure, saved=6)
    assert (alone.seconds[STEPS], alone.seconds[LOST], alone.lost_steps) == (12, 9, 4), "nothing after it was saved"
    failing = _account(*failure[:-1], now=31, saved=6)
    assert failing.seconds == alone.seconds, "the report at the end of the run is written before the end is recorded"


def test_a_kill_costs_at_most_the_time_between_two_records() -> None:
    """Nobody wrote when the attempt ended; a user resumed it after an hour."""
    found = _account(*START, (40, 0, STEPS, 10), (3640, 1, STARTING), (3645, 1, STEPS, 10), (3665, 1, STEPS, 20),
                     (3665, 1, ENDED, {"state": "done"}), saved=20)  # fmt: skip
    assert found.seconds == {PREPARING: 5, STARTING: 2 + 5, LOADING: 3, STEPS: 30 + 20, LOST: BEAT_S}
    assert (found.stopped_s, found.attempts[0].state) == (3600 - BEAT_S, None)
    dead = _account(*START, (40, 0, STEPS, 10), saved=10)
    assert dead.total_s == 40 and dead.seconds[STEPS] == 30, "it is dead: time does not go on"
    assert _account(*START, (40, 0, STEPS, 10), now=45).total_s == 45


@pytest.mark.parametrize(
    "between",
    [
        [(40, 0, ENDED, {"state": "preempted"}), (40, 1, QUEUE), (100, 1, STARTING, {"requeued": True})],
        [(40, 0, ENDED, {"state": "preempted"}), (100, 1, STARTING, {"requeued": True})],
    ],
)
def test_a_requeued_job_waits_in_the_queue(between: List[Any]) -> None:
    found = _account((-20, 0, QUEUE), *START, (40, 0, STEPS, 10), *between, (110, 1, STEPS, 10), (130, 1, STEPS, 20),
                     (130, 1, ENDED, {"state": "done"}), saved=20)  # fmt: skip
    assert found.seconds == {QUEUE: 20 + 60, PREPARING: 5, STARTING: 2 + 10, LOADING: 3, STEPS: 50}
    assert (found.value, found.stopped_s, len(found.attempts)) == (50 / 150, 0, 2)


def test_after_a_lost_node_slurm_requeues_a_job_that_could_say_nothing() -> None:
    found = _account(*START, (40, 0, STEPS, 10), (140, 1, STARTING, {"requeued": True}), (150, 1, STEPS, 5), now=160)
    assert found.seconds == {QUEUE: 100 - BEAT_S, PREPARING: 5, STARTING: 2 + 10, LOADING: 3, STEPS: 15 + 10,
                             LOST: 15 + BEAT_S}  # fmt: skip
    assert found.lost_steps == 5


def test_a_rollback_loses_the_steps_since_its_checkpoint() -> None:
    found = _account(*START, (30, 0, STEPS, 10), (36, 0, STEPS, 12), (38, 0, STEPS, 8), (48, 0, STEPS, 13), now=50)
    assert found.seconds[STEPS] == 16 + 10 + 2 and found.seconds[LOST] == (4 + 6) + 2 and found.lost_steps == 4


def test_the_run_directory_records_states_and_reads_them_back(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.write_status(state="frozen", attempt=0)
    run.write_status(attempt=-1)
    run.write_status(state="queued", requeues=0)
    run.write_status(state="starting", attempt=0)
    run.record_phase(LOADING, ranks=2)
    for _ in range(2):
        run.write_status(state="running", step=3)
    run.write_status(state="preempted", exit_reason="stopped")
    run.write_status(state="preempted", exit_code=75)
    run.write_status(state="starting", attempt=1, requeues=1)
    run.timeline.write_bytes(run.timeline.read_bytes() + b'{"time": 1, "phase": "x", "attempt": 0}\n{"cut')
    records = timeline.read(run.timeline)
    assert [(r["phase"], r["attempt"], r.get("state"), r.get("requeued")) for r in records] == [
        (QUEUE, 0, None, None), (STARTING, 0, None, None), (LOADING, 0, None, None), (ENDED, 0, "preempted", None),
        (STARTING, 1, None, True),
    ]  # fmt: skip
    found = goodput_of(run, alive=False)
    assert [attempt.ranks for attempt in found.attempts] == [2, None] and found.total_s < 5
    assert goodput_of(RunDir(tmp_path / "old"), alive=True).value is None
