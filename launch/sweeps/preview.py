"""What a sweep would start, for ``--dry-run``."""

from typing import List, Tuple

from ftdist.base.counts import count
from ftdist.base.output import short_path
from ftdist.base.ranges import ranges
from ftdist.config.schema import RunConfig
from ftdist.launch.attempt.machine import gpu_ids
from ftdist.launch.backends.slurm.script import cpus_asked, setting_or_option
from ftdist.launch.sweeps.folder import SweepDir, Trial
from ftdist.launch.sweeps.slurm_array import runs_as_array, scripts
from ftdist.launch.sweeps.table import varied_overrides
from ftdist.launch.sweeps.this_machine import trials_at_once


def show(folder: SweepDir, batch: List[Trial], trials: List[Tuple[Trial, RunConfig]], rungs: List[int]) -> None:
    """Print the trials of a batch that would run, and what would run them: batch scripts, or processes of this machine.

    Args:
        batch: all trials of the batch.
        trials: those that would run next, each with its checked config.
        rungs: ``sweep.rungs``.
    """
    words = varied_overrides(batch)
    if folder.exists:
        print(f"{len(trials)} of {count(len(batch), 'trial')} in {short_path(folder.path)} would run")
    else:
        print(f"{count(len(trials), 'trial')} in a folder such as {short_path(folder.path)}")
    if not trials:
        return
    for trial, _ in trials:
        print(f"  {trial.number:03d}  {words[trial.number]}")
    configs = {trial.number: config for trial, config in trials}
    first = trials[0][1]
    if runs_as_array(first):
        for path, text, members in scripts(folder, trials):
            config = configs[members[0].number]
            at_once = min(config.launch.trials_at_once or len(members), len(members))
            print(f"{path.name}: trials {ranges(trial.number for trial in members)}, {at_once} at a time, each on "
                  f"{_ranks(config)}{_request(config)}\n\n{text}")  # fmt: skip
    else:
        most = max(trials_at_once(config, len(gpu_ids())) for config in configs.values())
        print(f"{min(most, len(trials))} at a time, each on {_ranks(first)}")
    if rungs:
        share = f"the best {first.sweep.keep:.0%} of the trials continue"
        print(f"pauses after {', '.join(f'step {rung}' for rung in rungs)}, where {share}")


def _ranks(config: RunConfig) -> str:
    """Return the ranks of a run in words: ``2 ranks on cuda``, ``4 nodes with 8 ranks each on cuda``."""
    launch = config.launch
    ranks = count(launch.nproc_per_node or 1, "rank")
    where = f"on {launch.device.name}"
    return f"{ranks} {where}" if launch.nnodes == 1 else f"{launch.nnodes} nodes with {ranks} each {where}"


def _request(config: RunConfig) -> str:
    """Return what else a job asks Slurm for: ``, 4 CPUs on a node, a time limit of 12:00:00``."""
    cpus, limit = cpus_asked(config.launch), setting_or_option(config.launch.slurm, "time")
    asked = ([f"{count(cpus, 'CPU')} on a node"] if cpus else []) + ([f"a time limit of {limit}"] if limit else [])
    return "".join(f", {part}" for part in asked)
