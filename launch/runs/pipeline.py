"""One run from its config to its end: check, prepare model and data, freeze, start, wait."""

import time
from functools import partial
from typing import Callable, Optional, Tuple

from ftdist.base.errors import EXIT_DONE
from ftdist.config.schema import LaunchKind, RunConfig
from ftdist.launch.backends import registry
from ftdist.launch.backends.slurm import script
from ftdist.launch.runs import banner, ready, resolve
from ftdist.launch.runs.freeze import freeze
from ftdist.launch.verbs import verify
from ftdist.plan.batch import BatchPlan
from ftdist.plan.deepspeed import deepspeed_settings
from ftdist.run.prepared import data_folder, read_meta
from ftdist.run.rundir import RunDir


def make_ready(config: RunConfig, ranks: Optional[Tuple[int, int]] = None, shown: bool = True,
               verified: bool = False) -> Callable[[], RunDir]:  # fmt: skip
    """Everything before ranks: check, model, data, and what is ``shown`` of them. ``verified``: the config is checked
    on ranks of this machine first.

    Returns:
        What writes the run directory, and shows the run: whatever is wrong was said before.
    """
    plan = resolve.resolve(config, ranks)
    resolve.check_run_dir(config)
    deepspeed_settings(config, plan)
    data_folder(config)  # a file or template that is missing is named before anything else is said
    if config.launch.kind is LaunchKind.slurm:  # model and data are made ready by the job
        text = script.render(config)
        resolve.check_disk(config)
        if config.train.max_steps is not None:  # the steps of epochs are known in the job, where the ranks fit them
            _fit_schedule(config, 0, shown)
        return partial(_write, config, plan, shown, text)
    if shown:
        banner.show_machine()
    ready.make_model_ready(config)
    resolve.check_disk(config)
    if verified:
        verify.verify_quickly(config)
    folder = ready.make_data_ready(config)
    _fit_schedule(config, read_meta(folder)["sets"]["train"]["rows"], shown)
    return partial(_write, config, plan, shown)


def _fit_schedule(config: RunConfig, rows: int, shown: bool) -> None:
    note = resolve.check_length(config, rows)
    if note and shown:
        print(f"note: {note}")


def _write(config: RunConfig, plan: BatchPlan, shown: bool, script: str = "") -> RunDir:
    run = freeze(config, plan)
    if script:
        run.submit.write_text(script, encoding="utf-8")
    if shown:
        banner.show_run(config, plan, data_folder(config))
    return run


def run_one(config: RunConfig, dry_run: bool = False, verified: bool = False) -> int:
    """One run, from its config to its end."""
    started = time.monotonic()
    run = make_ready(config, verified=verified)()
    if dry_run:
        print(registry.dry_run(config, run))
        return EXIT_DONE
    code = registry.start_run(config, run)
    banner.show_next(run, code, time.monotonic() - started)
    return code
