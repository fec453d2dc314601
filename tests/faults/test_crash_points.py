"""The machine stops at any file operation of a save or of pruning: the old state or the new one is found."""

import shutil
from pathlib import Path
from typing import Any, Callable, List, Tuple

import pytest

from ftdist.base.json_files import read_records
from ftdist.checkpoint import durable
from ftdist.checkpoint.protocol import find_newest, prune, verify_checkpoint, write_checkpoint
from ftdist.run.rundir import PINNED, RunDir
from tests.faults.checkpoints import Alone, contained, contents
from tests.faults.disk import Crash, Disk
from tests.faults.table import fault

State = List[Tuple[int, float]]


@pytest.fixture
def template(tmp_path: Path) -> RunDir:
    """Return a run with two checkpoints."""
    run = RunDir(tmp_path / "template")
    run.checkpoints.mkdir(parents=True)
    for step in (5, 10):
        assert write_checkpoint(run, contents(step), Alone()) == ""
    return run


def every_crash(
    template: RunDir, action: Callable[[RunDir], Any], lose_power: bool, monkeypatch: pytest.MonkeyPatch,
    look: Callable[[RunDir], None] = lambda run: None,
) -> Tuple[List[str], List[State]]:  # fmt: skip
    """Stop ``action`` at each of its file operations in turn, and call ``look`` with each resulting run.

    Returns the names of the operations and the checkpoints that are found after each stop. The last entry is of the
    action that was not stopped.
    """
    states, stop_at = [], 0
    while True:
        run = RunDir(template.path.with_name("run"))
        scratch = template.path.with_name("scratch")
        for place in (run.path, scratch):
            shutil.rmtree(place, ignore_errors=True)
        scratch.mkdir()
        shutil.copytree(template.path, run.path)
        disk = Disk(run.path, scratch, stop_at=stop_at)
        monkeypatch.setattr(durable, "os", disk)
        try:
            action(run)
            stopped = False
        except Crash:
            stopped = True
        monkeypatch.undo()
        if lose_power:
            disk.lose_power()
        notes: List[str] = []
        found = find_newest(run, Alone(), notes.append)
        assert not notes, f"stopped at {stop_at}, {disk.operations[-3:]}: {notes}"
        assert found == run.published_checkpoints()[-1]
        assert not [path.name for path in run.checkpoints.iterdir() if path.name.startswith(".")]
        assert all(verify_checkpoint(path) is None for path in run.published_checkpoints())
        look(run)
        states.append(contained(run))
        if not stopped:
            return disk.operations, states
        stop_at += 1


def assert_one_change(states: List[State], before: State, after: State) -> None:
    assert states[0] == before and states[-1] == after
    change = states.index(after)
    assert states == [before] * change + [after] * (len(states) - change)


@fault(
    "saving",
    "the process is killed at any file operation of a save",
    "a shim counts every open, write, fsync, rename and unlink; the save is stopped at each in turn",
    "the older checkpoints are there, with or without the new one; all are verified; no temporary file is left",
)
def test_a_kill_at_every_operation_of_a_save(template: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    operations, states = every_crash(
        template, lambda run: write_checkpoint(run, contents(15), Alone()), False, monkeypatch
    )
    assert {name.split()[0] for name in operations} == {"mkdir", "open", "write", "fsync", "rename"}
    assert len(operations) > 25
    assert_one_change(states, [(5, 0), (10, 0)], [(5, 0), (10, 0), (15, 0)])


@fault(
    "saving",
    "the power fails at any file operation of a save",
    "as above, and everything that was not fsynced is lost: contents of files, entries of folders",
    "as above; a save that has returned is never lost",
)
def test_power_loss_at_every_operation_of_a_save(template: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    _, states = every_crash(template, lambda run: write_checkpoint(run, contents(15), Alone()), True, monkeypatch)
    assert_one_change(states, [(5, 0), (10, 0)], [(5, 0), (10, 0), (15, 0)])


@fault(
    "saving",
    "the power fails before metrics.jsonl and samples.jsonl are on the disk",
    "at every operation of a save, after a record of its step was written",
    "no checkpoint exists without its record",
)
def test_no_checkpoint_is_ahead_of_its_metrics(template: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    def log_and_save(run: RunDir) -> None:
        for record in (run.metrics, run.samples):
            record.write_text('{"step": 15}\n')
            durable.os.made(record)  # type: ignore[attr-defined]
        write_checkpoint(run, contents(15), Alone())

    def look(run: RunDir) -> None:
        if run.checkpoint(15).exists():
            assert read_records(run.metrics) == read_records(run.samples) == [{"step": 15}]

    _, states = every_crash(template, log_and_save, True, monkeypatch, look)
    assert_one_change(states, [(5, 0), (10, 0)], [(5, 0), (10, 0), (15, 0)])


@fault(
    "saving",
    "a kill or a power failure while a checkpoint of the same step is replaced (after its missing evaluation)",
    "both kinds, at every operation",
    "the old checkpoint or the new one is there and complete",
)
@pytest.mark.parametrize("lose_power", [False, True])
def test_a_crash_while_a_checkpoint_is_replaced(
    template: RunDir, lose_power: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    (template.checkpoint(10) / PINNED).touch()
    operations, states = every_crash(
        template, lambda run: write_checkpoint(run, contents(10, value=0.5), Alone()), lose_power, monkeypatch
    )
    assert "unlink manifest.json" in operations
    assert_one_change(states, [(5, 0), (10, 0)], [(5, 0), (10, 0.5)])
    assert (template.path.with_name("run") / "checkpoints" / "step-00000010" / PINNED).exists()


@fault(
    "pruning",
    "a kill or a power failure at any file operation of pruning",
    "both kinds, at every operation",
    "each old checkpoint is complete or gone; the checkpoints to keep are there",
)
@pytest.mark.parametrize("lose_power", [False, True])
def test_a_crash_at_every_operation_of_pruning(
    template: RunDir, lose_power: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(template, contents(15), Alone())
    operations, states = every_crash(template, lambda run: prune(run, 15, keep=1), lose_power, monkeypatch)
    assert len(operations) > 10
    allowed = [[(5, 0), (10, 0), (15, 0)], [(10, 0), (15, 0)], [(15, 0)]]
    assert [state for state in states if state not in allowed] == []
    assert states[0] == allowed[0]
    if not lose_power:  # else what was deleted comes back
        assert states[-1] == allowed[-1]
