"""Successive halving: all trials run to a rung, the best ones continue to the next rung, and the last ones to their
end.

A trial pauses by itself at the first rung of its own ``sweep.rungs``, after an evaluation and with a checkpoint. To let
it continue, the sweep removes this rung from its run.yaml. It is then resumed like any other run.
"""

import math
from typing import Callable, Dict, List, Optional

from ftdist.base.counts import count
from ftdist.config.frozen import load_config
from ftdist.config.sweep import SweepConfig
from ftdist.launch.backends.registry import backend_of
from ftdist.launch.runs import freeze
from ftdist.launch.sweeps.folder import SweepDir, Trial
from ftdist.launch.sweeps.objective import require_values
from ftdist.launch.sweeps.replicates import group_by_seed
from ftdist.plan.batch import plan_resumed
from ftdist.plan.layout import layout_of
from ftdist.run.rundir import PAUSED

RunTrials = Callable[[List[Trial]], Dict[int, int]]


def run_trials(folder: SweepDir, trials: List[Trial], sweep: SweepConfig, run: RunTrials) -> Dict[int, int]:
    """Run trials to their end, or until they are not chosen at a rung. Earlier runs and decisions are not repeated.

    Args:
        trials: trials that the sweeper has proposed together.
        run: runs trials until each of them ends or pauses, and returns exit codes by number.

    Returns:
        Exit codes by number.

    Raises:
        LaunchError: a trial has paused without an objective.
    """
    codes: Dict[int, int] = {}
    for place, rung in enumerate([*sweep.rungs, None]):
        promoted = folder.read_promoted(rung, trials)
        if promoted is None:
            if waiting := [trial for trial in trials if not _is_there(trial, rung)]:
                codes |= run(waiting)
            if rung is None or folder.cancel.exists():
                break
            promoted = choose(trials, sweep)
            if not promoted:  # all have failed; a resume tries them again
                break
            folder.add_promoted(rung, trials, promoted)
            print(f"step {rung}: {len(promoted)} of {count(len(trials), 'trial continues', 'trials continue')}: "
                  + " ".join(f"{trial.number:03d}" for trial in promoted), flush=True)  # fmt: skip
        trials = promoted
        for trial in trials:
            _let_go_on(trial, sweep.rungs[place + 1 :])
    return codes


def next_trials(folder: SweepDir, trials: List[Trial], sweep: SweepConfig) -> List[Trial]:
    """Return the trials that ``run_trials`` would run first. Nothing is written."""
    for rung in [*sweep.rungs, None]:
        promoted = folder.read_promoted(rung, trials)
        if promoted is None:
            waiting = [trial for trial in trials if not _is_there(trial, rung)]
            if waiting or rung is None:
                return waiting
            promoted = choose(trials, sweep)
        trials = promoted
    return []


def _is_there(trial: Trial, rung: Optional[int]) -> bool:
    """Return whether a trial has reached a rung, or its end."""
    status = trial.run.read_status()
    paused = status.get("state") == PAUSED and rung is not None and int(status.get("step", 0)) >= rung
    return paused or status.get("state") == "done"


def choose(trials: List[Trial], sweep: SweepConfig) -> List[Trial]:
    """Return the trials that continue after a rung: the share ``sweep.keep`` of the best ones, at least one. Trials
    that differ only in their seed continue together. A group with a failed trial does not continue.

    Raises:
        LaunchError: a trial has paused without an objective.
    """
    require_values(trials, sweep)
    groups = group_by_seed(trials, sweep)
    number = max(1, math.floor(len(groups) * sweep.keep + 1e-9))
    best = sorted(groups, key=lambda group: (group.objective, group.trials[0].number))[:number]
    chosen = {trial.number for group in best if group.objective < math.inf for trial in group.trials}
    return [trial for trial in trials if trial.number in chosen]


def _let_go_on(trial: Trial, rungs: List[int]) -> None:
    """Write the remaining rungs into the run.yaml of a trial, unless it holds them already."""
    config = load_config(trial.run.config)
    if config.sweep.rungs == rungs or trial.state == "done":
        return
    config.sweep.rungs = rungs
    plan = plan_resumed(config.batch, layout_of(config).data, config.data.max_seq_len)
    files = backend_of(config).files(config)
    freeze.freeze_again(trial.run, config, plan, [f"sweep.rungs={rungs}".replace(" ", "")], files)
