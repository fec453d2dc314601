"""A run from its config to its end: check, prepare model and data, freeze, start, wait."""

import time
from functools import partial
from typing import Callable, List, Mapping, Optional, Tuple

from ftdist.base.errors import EXIT_DONE, ConfigError
from ftdist.config.schema import RunConfig
from ftdist.launch.backends.registry import backend_of
from ftdist.launch.backends.slurm import srun_task
from ftdist.launch.runs import banner, inputs, resolve, verify
from ftdist.launch.runs.freeze import freeze
from ftdist.plan.batch import BatchPlan
from ftdist.plan.deepspeed import deepspeed_settings
from ftdist.plan.warmup import fit_schedule
from ftdist.run.identity import pin_revision, record_inputs
from ftdist.run.model_facts import read_facts, write_facts
from ftdist.run.prepared import data_folder, read_meta
from ftdist.run.rundir import RunDir
from ftdist.run.timeline import PREPARING


def check_run(config: RunConfig, ranks: Optional[Tuple[int, int]] = None) -> Tuple[BatchPlan, Mapping[str, str]]:
    """Check everything that is known before model and data are prepared. Nothing is started or written.

    Args:
        config: changed in place: every value becomes explicit.
        ranks: (nproc_per_node, nnodes) if torchrun has already started the ranks.

    Returns:
        How the global batch is divided among the ranks, and the files that the backend needs in the run directory.

    Raises:
        FtdistError: the run cannot be started with this config or machine.
    """
    plan = resolve.resolve(config, ranks)
    resolve.check_run_dir(config)
    deepspeed_settings(config, plan)
    data_folder(config)  # reads the files of the sources, so that a missing one is reported first
    return plan, backend_of(config).files(config)


def prepare_run(config: RunConfig, ranks: Optional[Tuple[int, int]] = None, shown: bool = True,
                verify_first: bool = False, argv: Optional[List[str]] = None,
                starts: bool = True) -> Callable[[], RunDir]:  # fmt: skip
    """Do everything that comes before the start of the ranks, except writing the run directory: checks, model, data.

    Args:
        config: changed in place: every value becomes explicit.
        ranks: (nproc_per_node, nnodes) if torchrun has already started the ranks.
        shown: print the machine, the settings and a sample.
        verify_first: run the quick checks of ``ftdist verify`` before the data is prepared.
        argv: the command that starts such a run. Defaults to that of this process.
        starts: the run is started afterwards, and not only written.

    Returns:
        A function that writes the run directory and returns it. Everything is checked before this function is returned.

    Raises:
        FtdistError: the run cannot be started with this config, model, data or machine.
    """
    asked = config.track.wandb
    plan, files = check_run(config, ranks)
    backend = backend_of(config)
    if starts:
        backend.check_start(config)
    if shown:
        if not backend.uses_scheduler:
            banner.show_machine()
        if backend.on_this_machine:
            srun_task.note_unused_nodes()
        banner.show_ignored_variables(config, asked)
    if backend.uses_scheduler:  # the job prepares model and data, without a network if it can
        inputs.fetch_for_job(config)
        files = backend.files(config)  # with the commit of the model, and without requests to the hub
        if config.train.max_steps is not None:  # with train.epochs, the job knows the steps
            _fit_schedule(config, 0, shown)
        resolve.check_disk(config)
        return partial(_write, config, plan, files, shown, argv)
    inputs.prepare_model(config)
    facts = read_facts(config)
    pin_revision(config)
    if facts is not None:
        write_facts(config, facts)  # the key of the same model now has the commit
    resolve.check_disk(config)
    if verify_first:
        verify.verify_quickly(config)
    folder = inputs.prepare_data(config)
    _fit_schedule(config, read_meta(folder)["sets"]["train"]["rows"], shown)
    return partial(_write, config, plan, files, shown, argv)


def _fit_schedule(config: RunConfig, rows: int, shown: bool) -> None:
    note = fit_schedule(config, rows)
    if note and shown:
        print(f"note: {note}")


def _write(
    config: RunConfig, plan: BatchPlan, files: Mapping[str, str], shown: bool, argv: Optional[List[str]]
) -> RunDir:  # fmt: skip
    run, folder = freeze(config, plan, argv, files), data_folder(config)
    record_inputs(run, config, None if backend_of(config).uses_scheduler else folder)
    if shown:
        banner.show_run(config, plan, folder)
    return run


def refuse_rungs(config: RunConfig) -> None:
    """Refuse the settings of a run that is no trial of a sweep if it would pause at rungs.

    Raises:
        ConfigError: ``sweep.rungs`` is set.
    """
    if config.sweep.rungs:
        raise ConfigError(f"sweep.rungs={config.sweep.rungs}, but this is one run and no sweep", "a sweep",
                          "sweep.rungs=[], or a sweep: ftdist train … -m key=1,2")  # fmt: skip


def run_from_config(config: RunConfig, dry_run: bool = False, verify_first: bool = False) -> int:
    """Run a config, from the checks to the end of its ranks. Returns the exit code.

    Args:
        dry_run: write the run directory and print what would be started.
        verify_first: see ``prepare_run``.

    Raises:
        FtdistError: what went wrong, for the user.
    """
    started, begun = time.monotonic(), time.time()
    refuse_rungs(config)
    run = prepare_run(config, verify_first=verify_first, starts=not dry_run)()
    if dry_run:
        print(backend_of(config).dry_run(config, run))
        return EXIT_DONE
    run.record_phase(PREPARING, time=begun)
    code = backend_of(config).start(config, run)
    banner.show_next(run, code, time.monotonic() - started)
    return code
