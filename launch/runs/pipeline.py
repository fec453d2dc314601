"""One run from its config to its end: check, prepare model and data, freeze, start, wait."""

import time
from functools import partial
from typing import Callable, Mapping, Optional, Tuple

from ftdist.base.errors import EXIT_DONE
from ftdist.config.schema import RunConfig
from ftdist.launch.backends.registry import backend_of
from ftdist.launch.runs import banner, ready, resolve, verify
from ftdist.launch.runs.freeze import freeze
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
    backend = backend_of(config)
    files = backend.files(config)
    if backend.uses_scheduler:  # the job prepares model and data
        resolve.check_disk(config)
        return partial(_write, config, plan, files, shown)
    if shown:
        banner.show_machine()
    ready.make_model_ready(config)
    resolve.check_disk(config)
    if verified:
        verify.verify_quickly(config)
    folder = ready.make_data_ready(config)
    resolve.check_length(config, read_meta(folder)["sets"]["train"]["rows"])
    return partial(_write, config, plan, files, shown)


def _write(config: RunConfig, plan: BatchPlan, files: Mapping[str, str], shown: bool) -> RunDir:
    run = freeze(config, plan, files=files)
    if shown:
        banner.show_run(config, plan, data_folder(config))
    return run


def run_one(config: RunConfig, dry_run: bool = False, verified: bool = False) -> int:
    """One run, from its config to its end."""
    started = time.monotonic()
    run = make_ready(config, verified=verified)()
    if dry_run:
        print(backend_of(config).dry_run(config, run))
        return EXIT_DONE
    code = backend_of(config).start(config, run)
    banner.show_next(run, code, time.monotonic() - started)
    return code
