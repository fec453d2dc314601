"""Run the trials of a sweep as an array of Slurm jobs. The index of an element is the number of its trial."""

import sys
import time
from pathlib import Path
from typing import Dict, List, Optional, Tuple

from ftdist.base.errors import EXIT_DONE, LaunchError
from ftdist.base.ranges import ranges
from ftdist.config.frozen import load_config
from ftdist.config.launch import LaunchKind
from ftdist.config.schema import RunConfig
from ftdist.launch.attempt.companion import stop_run_if_killed
from ftdist.launch.attempt.signals import touch_on_signals
from ftdist.launch.backends.base import ALIVE, STOPPING
from ftdist.launch.backends.slurm import client, follow, script, submission
from ftdist.launch.backends.slurm.stop import ask_to_stop
from ftdist.launch.runs.liveness import observe
from ftdist.launch.sweeps.folder import SweepDir, Trial
from ftdist.launch.sweeps.objective import describe_value


def runs_as_array(config: RunConfig) -> bool:
    """Return whether the trials of a sweep run as an array. Only Slurm has arrays of jobs."""
    return config.launch.kind is LaunchKind.slurm


def scripts(folder: SweepDir, trials: List[Tuple[Trial, RunConfig]]) -> List[Tuple[Path, str, List[Trial]]]:
    """Return the batch scripts of a sweep: path, text, and the trials that are elements of its array.

    Trials whose scripts differ in more than the trial, such as the number of nodes, are in different arrays.
    """
    together: Dict[str, List[Tuple[Trial, RunConfig]]] = {}
    for trial, config in trials:
        alike = script.render(config, array=script.Array(folder.path, []))
        together.setdefault(alike, []).append((trial, config))
    found = []
    for members in together.values():
        array = script.Array(folder.path, [trial.number for trial, _ in members])
        text = script.render(members[0][1], array=array)
        found.append((folder.path / f"array-{array.numbers[0]:03d}.sbatch", text, [trial for trial, _ in members]))
    return found


def run_trials(folder: SweepDir, trials: List[Trial], wait: Optional[bool] = None) -> Dict[int, int]:
    """Submit the trials that have no job yet, and wait for all of them if ``launch.wait`` is set.

    Args:
        wait: what to use in place of ``launch.wait``.

    Returns:
        Exit codes by number. 0 for jobs that nobody waits for.

    Raises:
        LaunchError: Slurm refuses a batch script.
    """
    states = _states(trials)
    new = [trial for trial, state in zip(trials, states, strict=True) if state not in ALIVE]
    stopping = [trial.number for trial, state in zip(trials, states, strict=True) if state == STOPPING]
    if stopping:
        print(f"not submitted again, because still stopping: trials {ranges(stopping)}. Resume the sweep again when "
              "nothing is stopping", flush=True)  # fmt: skip
    for path, text, members in scripts(folder, [(trial, load_config(trial.run.config)) for trial in new]):
        path.write_text(text, encoding="utf-8")
        job = submission.sbatch(path, *(trial.run for trial in members))
        print(f"submitted job {job}: trials {ranges(trial.number for trial in members)}", flush=True)
        for trial in members:
            submission.mark_queued(trial.run, f"{job}_{trial.number}")
    if not (load_config(trials[0].run.config).launch.wait if wait is None else wait):
        return dict.fromkeys((trial.number for trial in trials), EXIT_DONE)
    with stop_run_if_killed(folder.path):
        return _wait(folder, trials)


def without_job(trials: List[Trial]) -> List[Trial]:
    """Return the trials that have no job in Slurm's queue."""
    return [trial for trial, state in zip(trials, _states(trials), strict=True) if state not in ALIVE]


def _states(trials: List[Trial]) -> List[str]:
    return [found.state for found in observe([trial.run.read_status() for trial in trials])]


def _wait(folder: SweepDir, trials: List[Trial]) -> Dict[int, int]:
    codes: Dict[int, int] = {}
    said: Dict[int, str] = {}
    asked = False
    watch = follow.JobWatch()

    def end_now() -> None:
        for trial in left():
            trial.run.cancel.touch()
        client.cancel(*(str(trial.run.read_status()["job_id"]) for trial in left()))

    def left() -> List[Trial]:
        return [trial for trial in trials if trial.number not in codes]

    with touch_on_signals(folder.cancel, end_now):
        while left():
            if folder.cancel.exists() and not asked:
                asked = True
                for trial in left():
                    ask_to_stop(trial.run)
            ids = {trial.number: str(trial.run.read_status()["job_id"]) for trial in left()}
            found = watch.find(list(ids.values()))
            for trial in left():
                if found is None:  # Slurm does not answer
                    break
                job = found.get(ids[trial.number])
                if watch.is_over(ids[trial.number], job) and not follow.successor(trial.run, ids[trial.number]):
                    codes[trial.number] = _outcome(trial, job)
                elif job is not None and said.get(trial.number) != job.state:
                    said[trial.number] = job.state
                    print(f"trial {trial.number:03d}: {job.describe()}", flush=True)
            time.sleep(follow.POLL_S)
    return codes


def _outcome(trial: Trial, job: Optional[client.Job]) -> int:
    try:
        code = follow.outcome(trial.run, job)
    except LaunchError as error:
        print(f"trial {trial.number:03d}: {error}", file=sys.stderr)
        code = error.exit_code
    status = trial.run.read_status()
    reason = f": {status['exit_reason']}" if status.get("exit_reason") else ""
    value = describe_value(trial.run, load_config(trial.run.config).sweep)
    print(f"trial {trial.number:03d} is {status['state']}{reason}{value}", flush=True)
    return code
