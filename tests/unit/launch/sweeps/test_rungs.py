"""Successive halving: which trials go on, what a resume repeats, and what is written (stand-ins for trials)."""

import json
from typing import Dict, List

import pytest

from ftdist.config.frozen import dump_config, load_config
from ftdist.config.launch import Device
from ftdist.config.sweep import SweepConfig
from ftdist.launch.sweeps.folder import SweepDir, Trial
from ftdist.launch.sweeps.rungs import choose, next_trials, run_trials
from tests.unit.launch.run_tools import smoke
from tests.unit.launch.sweeps.tools import make_trial

RUNGS = SweepConfig(rungs=[2, 4], keep=0.5)


class Runs:
    """Stands in for what runs trials: each goes on to the first of its rungs. Its loss is 10 minus its number."""

    def __init__(self, fails: Dict[int, int], stops_at: int = -1) -> None:
        self.fails, self.stops_at, self.seen = fails, stops_at, []  # type: ignore[var-annotated]

    def __call__(self, trials: List[Trial]) -> Dict[int, int]:
        self.seen.append([trial.number for trial in trials])
        for trial in trials:
            rungs = load_config(trial.run.config).sweep.rungs
            step = rungs[0] if rungs else 6
            fails = self.fails.get(trial.number) == step
            trial.run.write_status(state="failed" if fails else "paused" if rungs else "done", step=step)
            trial.run.metrics.write_text(json.dumps({"step": step, "eval/a/loss": 10.0 - trial.number}) + "\n")
        if self.stops_at == len(self.seen):
            SweepDir(trials[0].run.path.parent).cancel.touch()
        return {trial.number: int(trial.state == "failed") for trial in trials}


def frozen(folder: SweepDir, count: int) -> List[Trial]:
    config = smoke("launch.device=cpu", "launch.nproc_per_node=1", "sweep.rungs=[2,4]", "train.max_steps=6")
    config.launch.device, config.batch.grad_accum_steps = Device.cpu, 1
    trials = [make_trial(folder, number, [], "frozen", [f"optim.lr=0.{number}"]) for number in range(count)]
    for trial in trials:
        config.run_dir, config.cache_dir = str(trial.run.path), "/cache"
        trial.run.config.write_text(dump_config(config))
    return trials


@pytest.mark.thorough
def test_the_best_half_goes_on_at_each_rung(folder: SweepDir, capsys: pytest.CaptureFixture[str]) -> None:
    trials, runs = frozen(folder, 5), Runs({4: 2, 3: 4})
    assert run_trials(folder, trials, RUNGS, runs) == {0: 0, 1: 0, 2: 0, 3: 1, 4: 1}
    assert runs.seen == [[0, 1, 2, 3, 4], [2, 3], [2]], "trial 4 fails before the first rung, trial 3 before the second"
    assert [trial.state for trial in trials] == ["paused", "paused", "done", "failed", "failed"]
    assert "step 2: 2 of 5 trials continue: 002 003" in capsys.readouterr().out
    assert [load_config(trial.run.config).sweep.rungs for trial in trials] == [[2, 4], [2, 4], [], [4], [2, 4]]
    origin = json.loads(trials[2].run.provenance.read_text())
    assert [resume["overrides"] for resume in origin["resumes"]] == [["sweep.rungs=[4]"], ["sweep.rungs=[]"]]
    again = Runs({})
    assert run_trials(folder, trials, RUNGS, again) == {} and again.seen == [], "nothing is left to do"


def test_a_sweep_that_was_stopped_between_rungs_goes_on_where_it_was(folder: SweepDir) -> None:
    trials, runs, again = frozen(folder, 4), Runs({}, stops_at=2), Runs({})
    run_trials(folder, trials, RUNGS, runs)
    assert runs.seen == [[0, 1, 2, 3], [2, 3]] and len(folder.rungs.read_text().splitlines()) == 1
    folder.cancel.unlink()
    trials[2].run.write_status(state="preempted", step=3)
    assert next_trials(folder, trials, RUNGS) == [trials[2]]
    run_trials(folder, trials, RUNGS, again)
    assert again.seen == [[2], [3]], "trial 3 is at the second rung already, and is the better one"
    assert next_trials(folder, trials, RUNGS) == []


@pytest.mark.thorough
def test_the_next_trials_are_the_best_of_a_rung_where_all_have_paused(folder: SweepDir) -> None:
    trials, runs = frozen(folder, 4), Runs({})
    assert next_trials(folder, trials, RUNGS) == trials
    runs(trials)
    assert next_trials(folder, trials, RUNGS) == trials[2:] and not folder.rungs.exists()


def test_if_all_trials_fail_at_a_rung_a_resume_tries_them_again(folder: SweepDir) -> None:
    trials, runs = frozen(folder, 2), Runs({0: 2, 1: 2})
    assert run_trials(folder, trials, RUNGS, runs) == {0: 1, 1: 1} and not folder.rungs.exists()
    again = Runs({})
    assert run_trials(folder, trials, RUNGS, again) == {0: 0, 1: 0} and again.seen == [[0, 1], [1], [1]]


@pytest.mark.parametrize(("keep", "chosen"), [(0.5, [2, 3]), (0.1, [2, 3]), (0.9, [0, 1, 2, 3])])
def test_replicates_go_on_together_by_their_mean(keep: float, chosen: List[int], folder: SweepDir) -> None:
    """The best single trial is in the worse group. A group with a failed trial does not go on."""
    losses = {0: 1.0, 1: 9.0, 2: 3.0, 3: 3.0, 4: 0.1, 5: 0.1}
    trials = [
        make_trial(folder, n, [9.0, loss], "failed" if n == 5 else "paused", [f"optim.lr=0.{n // 2}", f"seed={n % 2}"],
                   step=2)
        for n, loss in losses.items()
    ]  # fmt: skip
    assert [trial.number for trial in choose(trials, SweepConfig(keep=keep))] == chosen
