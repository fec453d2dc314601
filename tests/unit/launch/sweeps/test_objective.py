"""The objective of a trial: which values count, in which states, and what is said if there is none."""

import json
import math
from typing import Any, Optional

import pytest

from ftdist.base.errors import LaunchError
from ftdist.config.frozen import dump_config
from ftdist.config.schema import RunConfig
from ftdist.config.sweep import Direction, SweepConfig
from ftdist.launch.sweeps.folder import SweepDir
from ftdist.launch.sweeps.objective import best_value, describe_value, objective, require_values
from ftdist.launch.sweeps.table import show_table
from ftdist.train.forgetting import KL
from ftdist.train.state import TrainState
from ftdist.train.stop_when import gain_metrics
from tests.unit.launch.sweeps.tools import make_trial


@pytest.mark.parametrize(
    ("losses", "state", "found"),
    [
        ([5.0, 3.0, 4.0], "done", 3.0),
        ([5.81, 248378.0], "done", 248378.0),  # it diverged after its first step
        ([5.81], "done", math.inf),
        ([5.81, math.inf, 7.0], "done", 7.0),
        (["nan"], "done", math.inf),
        ([5.0, 3.0], "failed", math.inf),
        ([5.0, 3.0], "preempted", math.inf),
        ([5.0, 3.0], "paused", 3.0),
    ],
)
def test_the_objective_is_the_best_held_out_loss_of_a_trial_that_ended_well(
    losses: list, state: str, found: float, folder: SweepDir
) -> None:
    assert objective(make_trial(folder, 1, losses, state).run, SweepConfig()) == found


RECORDS = [{"step": 0, "train/x": 9.0}, {"step": 1, "train/x": math.nan},
           {"step": 1, "train/x": 2.0, "eval/a/loss": 1.0, "eval/b/loss": 3.0, KL: 0.25,
            "perf/goodput": 0.5, "general/a/loss": 2.0},
           {"step": 2, "train/x": 4.0, "train/text": "a", KL: 0.5},
           {"step": 3, "train/x": math.inf, "perf/goodput": "nan", "general/a/loss": 2.5}]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "direction", "best", "told", "shown"),
    [
        (None, "minimize", 2.0, 2.0, ": held-out loss 2.0000"),  # the mean of two held-out sets
        ("eval/b/loss", "minimize", 3.0, 3.0, ": eval/b/loss 3"),
        ("train/x", "minimize", 2.0, 2.0, ": train/x 2"),
        ("train/x", "maximize", 4.0, -4.0, ": train/x 4"),
        (KL, "minimize", 0.5, 0.5, ": forgetting/kl 0.5"),  # the newest one: it grows with every step
        ("perf/goodput", "maximize", None, math.inf, ""),  # the newest one is not finite
        ("general/a/loss", "minimize", 2.5, 2.5, ": general/a/loss 2.5"),
        ("train/text", "minimize", None, math.inf, ""),
    ],
)
def test_any_metric_can_be_the_objective(
    name: Optional[str], direction: str, best: Any, told: float, shown: str, folder: SweepDir
) -> None:
    trial, sweep = make_trial(folder, 1, [], "done"), SweepConfig(objective=name, direction=Direction[direction])
    trial.run.metrics.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    assert (best_value(trial.run, sweep), objective(trial.run, sweep)) == (best, told)
    assert describe_value(trial.run, sweep) == shown


def test_a_metric_that_no_trial_has_is_an_error_that_names_the_others(
    folder: SweepDir, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table of a sweep that does not need it shows this as a note."""
    trials = [make_trial(folder, 1, [5.0, 3.0], "done"), make_trial(folder, 2, [], "failed")]
    require_values(trials, SweepConfig())
    with pytest.raises(LaunchError, match="eval/b/loss") as error:
        require_values(trials, SweepConfig(objective="eval/b/loss"))
    assert error.value.expected.endswith("eval/a/loss") and error.value.fix == "sweep.objective=eval/a/loss"
    config = RunConfig()
    config.sweep.objective = "eval/b/loss"
    trials[0].run.config.write_text(dump_config(config))
    folder.add_trials(trials)
    show_table(folder)
    shown = capsys.readouterr().out
    assert shown.split()[0] == "eval/b/loss" and f"note: {error.value}" in shown
    with pytest.raises(LaunchError, match="held-out loss"):
        require_values([make_trial(folder, 3, [5.0], "done")], SweepConfig())


def test_a_sweep_for_gain_prefers_another_trial_than_one_for_gain_minus_forgetting(
    folder: SweepDir, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each trial gains more than the one before it, and forgets more."""
    trials = [make_trial(folder, number, [], "done") for number in (1, 2, 3)]
    for trial, (loss, kl) in zip(trials, ((2.75, 0.0625), (2.25, 0.25), (2.0, 1.5)), strict=True):
        step, state = {"step": 4, "eval/a/loss": loss, KL: kl}, TrainState(step=4, first_loss=3.0, eval_loss=loss)
        trial.run.metrics.write_text(json.dumps({**step, **gain_metrics(state, kl)}) + "\n")
    folder.add_trials(trials)
    order = {}
    for name in ("gain/loss", "gain/net"):
        config = RunConfig()
        config.sweep.objective, config.sweep.direction = name, Direction.maximize
        for trial in trials:
            trial.run.config.write_text(dump_config(config))
        show_table(folder)
        rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
        order[name] = [(row[0], row[2]) for row in rows]
    assert order == {
        "gain/loss": [("1", "optim.lr=0.3"), ("0.75", "optim.lr=0.2"), ("0.25", "optim.lr=0.1")],
        "gain/net": [("0.5", "optim.lr=0.2"), ("0.1875", "optim.lr=0.1"), ("-0.5", "optim.lr=0.3")],
    }
