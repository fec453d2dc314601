"""Run a sweep: Hydra's sweeper proposes batches of trials, the trials run, and the sweeper gets their objectives.

A trial is a frozen run directory, and ``ftdist resume`` runs it. A sweep that was interrupted is resumed as it began:
the sweeper proposes the same trials again, and trials that are finished do not run again.
"""

import argparse
import contextlib
import math
import os
import platform
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Optional, Tuple

from ftdist.base.counts import count
from ftdist.base.errors import EXIT_DONE, EXIT_PREEMPTED, ConfigError, DataError, FtdistError
from ftdist.base.json_files import read_json, write_json
from ftdist.base.output import quoted_path, short_path
from ftdist.base.permissions import explain_os_error
from ftdist.config.frozen import load_config
from ftdist.config.launch import Device
from ftdist.config.schema import RunConfig
from ftdist.launch.attempt.machine import cpu_cores
from ftdist.launch.backends.base import ALIVE
from ftdist.launch.backends.registry import backend_of
from ftdist.launch.backends.slurm.ownership import owned
from ftdist.launch.config import sweeper
from ftdist.launch.config.session import PRIMARY
from ftdist.launch.runs import resolve
from ftdist.launch.runs.liveness import liveness
from ftdist.launch.runs.pipeline import check_run, prepare_run
from ftdist.launch.sweeps import preview, rungs, slurm_array, this_machine
from ftdist.launch.sweeps.folder import SweepDir, Trial
from ftdist.launch.sweeps.objective import ENDED, objective, require_values
from ftdist.launch.sweeps.table import show_table, varied_overrides
from ftdist.run.rundir import RunDir

Batch = List[Tuple[List[str], sweeper.ComposeTrial]]


class _Stopped(Exception):
    """The sweep was asked to stop, and its trials have stopped."""


class _Shown(Exception):
    """A dry run has shown the first trials of a sweeper that proposes more when it knows their objectives."""


def start_sweep(args: argparse.Namespace) -> int:
    """Run ``ftdist train -m``. Returns the exit code of the first trial that did not end well, or 0.

    Raises:
        ConfigError: the request or the config of a trial is wrong. Nothing has been written.
        LaunchError: a trial cannot be used by the sweeper, or Slurm refuses the trials.
    """
    config_dir = None if args.config_dir is None else str(Path(args.config_dir).absolute())
    request = sweeper.SweepRequest(list(args.overrides), config_dir, args.config_name)
    plan = sweeper.peek_sweep(request)
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{plan.name.replace('/', '-')}-sweep"
    folder = SweepDir(Path(plan.runs_dir).expanduser().absolute() / name)
    resolve.check_run_dir(RunConfig(run_dir=str(folder.path)))
    return _Sweep(folder, request, plan, args.dry_run).run()


def resume_sweep(place: Path, quiet: bool = False, wait: Optional[bool] = None, dry_run: bool = False) -> int:
    """Resume a sweep: trials that are done are not run again, the others resume from their checkpoints.

    Args:
        quiet: do not print that the sweep is done, because another process does.
        wait: what to use in place of ``launch.wait`` of the trials.
        dry_run: only print what would be started.

    Returns:
        The exit code: 0 if the sweep was done before, else that of the first trial that did not end well.

    Raises:
        ConfigError: the sweep is under way, or its request cannot be read.
    """
    folder = SweepDir(place.resolve())
    state = liveness(folder.read_status())
    if state in ALIVE:
        raise ConfigError(f"{place} is {state}", "a sweep that has stopped",
                          f"wait until it ends, or stop it: ftdist cancel {quoted_path(place)}")  # fmt: skip
    if state == "done" and all(trial.state in ENDED for trial in folder.trials()):
        if not quiet:
            print(f"{short_path(folder.path)} is done; its trials, best first: ftdist sweep {quoted_path(folder.path)}")
        return EXIT_DONE
    try:
        asked = read_json(folder.request)
        os.chdir(asked.pop("cwd"))  # relative paths in its overrides
        request = sweeper.SweepRequest(**asked)
    except PermissionError as error:
        raise explain_os_error(error) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"cannot resume from {folder.request}: {error}",
            "a sweep.json written by `ftdist train -m`, and the working directory that it names",
            "restore them, or start a new sweep",
        ) from error
    plan = sweeper.peek_sweep(request)
    if wait is False:
        _check_wait(plan)
    if dry_run:
        return _Sweep(folder, request, plan, dry_run=True).run()
    with owned(folder):
        return _Sweep(folder, request, plan, wait=wait).run()


def _check_wait(plan: sweeper.SweepPlan) -> None:
    """Check that a sweep which does not wait for its trials does not need their results.

    Raises:
        ConfigError: it needs their results.
    """
    if plan.learns or plan.rungs:
        why = "the sweeper needs the objectives of its trials" if plan.learns else "sweep.rungs compares the trials"
        raise ConfigError(f"launch.wait=false, but {why}", "a sweep that waits for its trials", "launch.wait=true")


class _Sweep:
    """A sweep that is under way."""

    def __init__(
        self, folder: SweepDir, request: sweeper.SweepRequest, plan: sweeper.SweepPlan, dry_run: bool = False,
        wait: Optional[bool] = None,
    ) -> None:  # fmt: skip
        self.folder, self.request, self.plan = folder, request, plan
        self._dry_run, self._wait = dry_run, wait
        self.codes: Dict[int, int] = {}

    def run(self) -> int:
        """Run the sweep to its end. Returns the exit code of the first trial that did not end well, or 0."""
        if self._dry_run:
            return self._show()
        self.folder.cancel.unlink(missing_ok=True)
        try:
            sweeper.sweep(self.request, self._run_batch)
        except _Stopped:
            self._end("preempted")
            show_table(self.folder)
            print(f"stopped; resume with: ftdist resume {quoted_path(self.folder.path)}")
            return EXIT_PREEMPTED
        except FtdistError as error:
            if self.folder.exists:
                self._end("failed", (str(error).splitlines() or ["a trial's model or data was refused"])[0])
            raise
        code = next((code for _, code in sorted(self.codes.items()) if code), EXIT_DONE)
        states = {trial.state for trial in self.folder.trials()}
        self._end("submitted" if states & set(ALIVE) else "done")
        show_table(self.folder)
        return code

    def _show(self) -> int:
        """Print what the sweep would start. Nothing is written."""

        def show_batch(batch: Batch, first: int) -> List[float]:
            trials = self._trials(batch, first)
            new = self._compose(batch, trials)
            for trial, config in new:
                with _named([trial for trial, _ in new], trial):
                    check_run(config)
            told = self.folder.read_objectives() if self.plan.learns else {}
            preview.show(self.folder, trials, self._left(trials, new, told), self.plan.rungs)
            if self.plan.learns and any(trial.number not in told for trial in trials):
                raise _Shown
            return [told.get(trial.number, math.inf) for trial in trials]

        try:
            sweeper.sweep(self.request, show_batch)
        except _Shown:
            print("the sweeper proposes more trials when it knows the objectives of these")
        does = "resumes" if self.folder.exists else "starts"
        print(f"nothing was written or started; without --dry-run this command {does} the sweep")
        return EXIT_DONE

    def _left(
        self, trials: List[Trial], new: List[Tuple[Trial, RunConfig]], told: Dict[int, float]
    ) -> List[Tuple[Trial, RunConfig]]:
        """Return those of the trials of a batch that would run next, each with its config.

        Args:
            new: the trials that have no run directory yet, each with its config.
            told: objectives that the sweeper was given, by number of the trial.
        """
        configs = {trial.number: config for trial, config in new}
        configs |= {trial.number: load_config(trial.run.config) for trial in trials if trial.number not in configs}
        settings = replace(configs[trials[0].number].sweep, rungs=self.plan.rungs)
        left = rungs.next_trials(self.folder, [trial for trial in trials if trial.number not in told], settings)
        if left and self.folder.exists and slurm_array.runs_as_array(configs[left[0].number]):
            left = slurm_array.without_job(left)
        return [(trial, configs[trial.number]) for trial in left]

    def _end(self, state: str, reason: str = "") -> None:
        self.folder.write_status(state=state, exit_reason=reason, pid=None)

    def _run_batch(self, batch: Batch, first: int) -> List[float]:
        """Run the trials of a batch that are not finished. Returns the objectives of all its trials."""
        trials = self._freeze(batch, first)
        told = self.folder.read_objectives() if self.plan.learns else {}
        left = [trial for trial in trials if trial.number not in told]
        settings = load_config(trials[0].run.config).sweep
        settings.rungs = self.plan.rungs  # a trial's run.yaml loses the rungs that it has passed
        self.codes |= rungs.run_trials(self.folder, left, settings, lambda some: _run(self.folder, some, self._wait))
        if self.folder.cancel.exists():
            raise _Stopped
        objectives = {trial.number: told.get(trial.number, objective(trial.run, settings)) for trial in trials}
        self.folder.add_objectives(objectives)
        if self.plan.learns:
            require_values(trials, settings)
        return [objectives[trial.number] for trial in trials]

    def _freeze(self, batch: Batch, first: int) -> List[Trial]:
        """Return the trials of a batch, with their run directories written.

        No run directory is written before all new trials have been composed, checked and prepared.
        """
        trials = self._trials(batch, first)
        known = {trial.number for trial in self.folder.trials()}
        fresh = self._compose(batch, trials)
        for trial, config in fresh:
            with _named(trials, trial):
                resolve.resolve(config)
        writes: List[Callable[[], RunDir]] = []
        for trial, config in fresh:
            with _named(trials, trial):
                writes.append(prepare_run(config, shown=trial.number == 0, argv=self._command(trial, config)))
        self._announce(trials, [trial for trial in trials if trial.number not in known])
        for write in writes:
            write()
        return trials

    def _command(self, trial: Trial, config: RunConfig) -> List[str]:
        """Return the command of a run that repeats a trial alone."""
        folder, name = self.request.config_dir, self.request.config_name
        places = [] if folder is None else ["--config-dir", folder]
        places += [] if name == PRIMARY else ["--config-name", name]
        return ["ftdist", "train", *places, *trial.overrides, *["sweep.rungs=[]"] * bool(config.sweep.rungs)]

    def _trials(self, batch: Batch, first: int) -> List[Trial]:
        return [self.folder.trial(number, overrides) for number, (overrides, _) in enumerate(batch, first)]

    def _compose(self, batch: Batch, trials: List[Trial]) -> List[Tuple[Trial, RunConfig]]:
        """Return the trials of a batch that have no run directory yet, each with its config. Nothing is written."""
        known = {trial.number: trial for trial in self.folder.trials()}
        fresh: List[Tuple[Trial, RunConfig]] = []
        for trial, (_, compose_trial) in zip(trials, batch, strict=True):
            before = known.get(trial.number)
            if before is not None and before.overrides != trial.overrides:
                raise ConfigError(
                    f"when the sweep was resumed, the sweeper proposed {' '.join(trial.overrides)} for trial "
                    f"{trial.number}, but the first time it proposed {' '.join(before.overrides)}",
                    "the same trials as the first time", "give the sweeper a seed",
                )  # fmt: skip
            if not trial.run.config.is_file():
                fresh.append((trial, compose_trial()))
        self._check([config for _, config in fresh])
        for trial, config in fresh:
            config.run_dir, config.track.group = str(trial.run.path), config.track.group or self.folder.path.name
        return fresh

    def _check(self, configs: List[RunConfig]) -> None:
        for config in configs:
            launch = config.launch
            if config.run_dir is not None:
                raise ConfigError("run_dir cannot be used with --multirun", "one directory for each run of the sweep",
                                  "runs_dir=FOLDER")  # fmt: skip
            if launch.kind is not configs[0].launch.kind:
                raise ConfigError("launch.kind differs between trials", "one launch.kind for all trials",
                                  f"give launch one value: launch={launch.kind.name}")  # fmt: skip
            if config.sweep != configs[0].sweep:
                raise ConfigError("the section sweep differs between trials", "the same settings for all trials",
                                  "give each of its keys one value")  # fmt: skip
            backend = backend_of(config)
            if backend.uses_scheduler and not launch.wait:
                _check_wait(self.plan)
            if backend.on_this_machine and launch.device is not Device.cuda and not launch.threads_per_rank:
                ranks = (launch.nproc_per_node or 1) * (launch.trials_at_once or 1)
                launch.threads_per_rank = max(1, cpu_cores() // ranks)

    def _announce(self, trials: List[Trial], new: List[Trial]) -> None:
        if not self.folder.exists:
            try:
                self.folder.path.parent.mkdir(parents=True, exist_ok=True)
                self.folder.path.mkdir()  # fails if the folder exists: another user may have guessed its name
            except OSError as error:
                raise ConfigError(f"cannot make {self.folder.path}: {error.strerror}", "a folder you may write to",
                                  "runs_dir=FOLDER") from error  # fmt: skip
            write_json(self.folder.request, {**asdict(self.request), "cwd": str(Path.cwd())})
        self.folder.write_status(state="running", pid=os.getpid(), host=platform.node(), exit_reason="")
        self.folder.add_trials(new)
        words = varied_overrides(self.folder.trials())
        print(f"{count(len(trials), 'trial')} in {short_path(self.folder.path)}", flush=True)
        for trial in trials:
            print(f"  {trial.number:03d}  {words[trial.number]}", flush=True)


@contextlib.contextmanager
def _named(trials: List[Trial], trial: Trial) -> Iterator[None]:
    """Add the overrides in which a trial differs from the others of its batch to errors in the ``with`` block."""
    try:
        yield
    except (ConfigError, DataError) as error:
        words = varied_overrides(trials)[trial.number]
        raise type(error)(f"trial {words}: {error.found}", error.expected, error.fix) from error


def _run(folder: SweepDir, trials: List[Trial], wait: Optional[bool]) -> Dict[int, int]:
    """Run trials. Returns their exit codes by number."""
    if slurm_array.runs_as_array(load_config(trials[0].run.config)):
        return slurm_array.run_trials(folder, trials, wait)
    return this_machine.run_trials(folder, trials)
