"""Check a config on ranks of this machine before it is run anywhere."""

import copy
import json
import os
import tempfile
import time
from dataclasses import dataclass
from typing import List

from rich.console import Console

from ftdist.base.counts import count
from ftdist.base.errors import LaunchError
from ftdist.base.terminal import task
from ftdist.config.frozen import dump_config
from ftdist.config.launch import Device, LaunchConfig
from ftdist.config.schema import RunConfig
from ftdist.launch.attempt import torchrun
from ftdist.launch.attempt.command import plan_local
from ftdist.launch.attempt.failure import explain_failure
from ftdist.launch.attempt.machine import cpu_cores, visible_gpus
from ftdist.launch.runs import inputs, resolve
from ftdist.plan.batch import plan_batch
from ftdist.plan.layout import Layout
from ftdist.run.adapters import find_adapters
from ftdist.run.checks import FAILED, NOTES, Check, count_outcomes, failed, print_checks, read_checks
from ftdist.run.locations import check_model_folder
from ftdist.run.rundir import RunDir

TRACE_LINES = 12
"""Lines that a failed check shows of a stack trace."""


@dataclass(frozen=True)
class Verified:
    """The result of checking a config."""

    checks: List[Check]
    notes: List[str]
    """How the checked config differs from the config of the run."""
    took_s: float

    @property
    def good(self) -> bool:
        """Whether no check failed."""
        return not any(check.outcome == FAILED for check in self.checks)


def verify_quickly(config: RunConfig) -> None:
    """Run the quick checks and print one line.

    Raises:
        LaunchError: a check failed. The whole table has been printed.
    """
    verified = run_checks(copy.deepcopy(config), quick=True)
    if not verified.good:
        show(verified)
        raise LaunchError(
            "at least one check failed (see the table above), so training on this machine would not be reliable",
            "no failed checks", "run `ftdist train experiment=demo` to train without the checks",
        )  # fmt: skip
    print(f"{'verify':10} {count_outcomes(verified.checks)} (ftdist verify checks all of them)", flush=True)


def show(verified: Verified) -> None:
    """Print the table of checks."""
    console = Console(highlight=False, width=None if os.isatty(1) else 120)
    for note in verified.notes:
        console.print(f"note: {note}", markup=False)
    print_checks(verified.checks, console)
    console.print(f"{count_outcomes(verified.checks)} in {verified.took_s:.0f} s")


def run_checks(config: RunConfig, quick: bool) -> Verified:
    """Check a config on ranks of this machine.

    Args:
        config: changed in place to fit this machine.
        quick: use a small stand-in for the model, and save nothing.

    Raises:
        ConfigError: the config cannot work on any machine.
    """
    started = time.monotonic()
    resolve.resolve_paths(config)
    check_model_folder(config)
    find_adapters(config)
    wanted = Layout(config.launch.nnodes, config.launch.nproc_per_node or max(1, len(visible_gpus()))).data
    plan_batch(config.batch, wanted, config.data.max_seq_len)
    notes = _fit_ranks(config, wanted)
    inputs.convert_model(config)
    with tempfile.TemporaryDirectory(prefix="ftdist-verify-") as scratch:
        run = RunDir(scratch)
        run.logs.mkdir()
        run.config.write_text(dump_config(config), encoding="utf-8")
        arguments = [scratch, "--wanted-ranks", str(wanted), *(["--quick"] if quick else [])]
        log = run.logs / "launcher.log"
        with task("checking the config"):
            code = torchrun.run_ranks(plan_local(config, "ftdist.verify.main", *arguments), log)
        found = read_checks(run.path)
        if code:
            found.append(failed("all checks completed", _without_logs(explain_failure(run, 0, [log], code))))
        written = run.path / NOTES
        notes += json.loads(written.read_text(encoding="utf-8")) if written.is_file() else []
    return Verified(found, notes, time.monotonic() - started)


def _fit_ranks(config: RunConfig, wanted: int) -> List[str]:
    """Replace the launch settings by settings for this machine: one rank for each GPU, or on CPU for each core.

    There are at most as many ranks as the run has. On CPU, two are always allowed.

    Returns:
        Notes on how they differ from those of the run.
    """
    gpus, launch = len(visible_gpus()), config.launch
    notes = []
    device = Device.cuda if gpus and launch.device is not Device.cpu else Device.cpu
    if launch.device is Device.cuda and not gpus:
        notes.append("this machine has no GPU, so GPU kernels are not checked")
    if device is Device.cpu and config.optim.paged:
        notes.append("the optimizer is checked without optim.paged, because no GPU is used")
        config.optim.paged = False
    ranks = min(wanted, gpus if device is Device.cuda else max(2, cpu_cores()))
    if ranks != wanted:
        notes.append(f"the run uses {count(wanted, 'rank')}; this check uses {ranks}")
    threads = max(1, cpu_cores() // ranks)
    config.launch = LaunchConfig(
        device=device, nproc_per_node=ranks, threads_per_rank=threads, timeout_s=launch.timeout_s
    )
    return notes


def _without_logs(error: LaunchError) -> str:
    # The log files are removed with the folder.
    first, *rest = [line for line in error.found.splitlines() if "logs:" not in line]
    return "\n".join([first, *rest[-TRACE_LINES:]])
