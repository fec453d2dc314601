"""The verb ``verify``: checks a config on this machine before it is run anywhere."""

import argparse
import copy
import json
import os
import tempfile
import time
from dataclasses import dataclass
from typing import List

from rich.console import Console

from ftdist.base.errors import EXIT_DONE, EXIT_FAILED, LaunchError
from ftdist.base.terminal import task
from ftdist.config.schema import Device, LaunchConfig, RunConfig, dump_config
from ftdist.launch.attempt import process
from ftdist.launch.attempt.failure import explain_failure
from ftdist.launch.attempt.machine import cpu_cores, visible_gpus
from ftdist.launch.backends.base import plan_local
from ftdist.launch.config import compose
from ftdist.launch.runs import ready, resolve
from ftdist.plan.batch import plan_batch
from ftdist.plan.layout import Layout
from ftdist.run.checks import FAILED, NOTES, Check, count, failed, print_checks, read
from ftdist.run.locations import check_model_folder
from ftdist.run.rundir import RunDir

TRACE_LINES = 12


@dataclass(frozen=True)
class Verified:
    checks: List[Check]
    notes: List[str]
    """How what was checked differs from the run."""
    took_s: float

    @property
    def good(self) -> bool:
        return not any(check.outcome == FAILED for check in self.checks)


def add_verify_arguments(parser: argparse.ArgumentParser) -> None:
    compose.add_arguments(parser)
    parser.add_argument("--quick", action="store_true", help="seconds: a small stand-in, and nothing saved")


def verify(args: argparse.Namespace) -> int:
    """Print a table of ticks. Returns 1 if a check failed."""
    if args.cfg or args.info:
        compose.show(args)
        return EXIT_DONE
    verified = run_checks(compose.compose(args), args.quick)
    show(verified)
    return EXIT_DONE if verified.good else EXIT_FAILED


def verify_quickly(config: RunConfig) -> None:
    """One line for the demo.

    Raises:
        LaunchError: a check failed; the whole table has been printed.
    """
    verified = run_checks(copy.deepcopy(config), quick=True)
    if not verified.good:
        show(verified)
        raise LaunchError("a check failed, see above: this machine does not train as it should", "no failed check",
                          "ftdist train experiment=demo trains without checking")  # fmt: skip
    print(f"{'verify':10} {count(verified.checks)} (ftdist verify checks all of them)", flush=True)


def show(verified: Verified) -> None:
    console = Console(highlight=False, width=None if os.isatty(1) else 120)
    for note in verified.notes:
        console.print(f"note: {note}", markup=False)
    print_checks(verified.checks, console)
    console.print(f"{count(verified.checks)} in {verified.took_s:.0f} s")


def run_checks(config: RunConfig, quick: bool) -> Verified:
    """Check a config on ranks of this machine. ``config`` is changed to what fits it.

    Raises:
        ConfigError: the config cannot work anywhere.
    """
    started = time.monotonic()
    resolve.resolve_paths(config)
    check_model_folder(config)
    wanted = Layout(config.launch.nnodes, config.launch.nproc_per_node or max(1, len(visible_gpus()))).data
    plan_batch(config.batch, wanted, config.data.max_seq_len)
    notes = _fit_ranks(config, wanted)
    ready.convert_model(config)
    with tempfile.TemporaryDirectory(prefix="ftdist-verify-") as scratch:
        run = RunDir(scratch)
        run.logs.mkdir()
        run.config.write_text(dump_config(config), encoding="utf-8")
        arguments = [scratch, "--wanted-ranks", str(wanted), *(["--quick"] if quick else [])]
        log = run.logs / "launcher.log"
        with task("checking the config"):
            code = process.start(plan_local(config, "ftdist.verify.main", arguments), log)
        found = read(run.path)
        if code:
            found.append(failed("the checks run to their end", _without_logs(explain_failure(run, 0, log, code))))
        written = run.path / NOTES
        notes += json.loads(written.read_text(encoding="utf-8")) if written.is_file() else []
    return Verified(found, notes, time.monotonic() - started)


def _fit_ranks(config: RunConfig, wanted: int) -> List[str]:
    """Ranks of this machine: its GPUs, else up to two on CPU."""
    gpus, launch = len(visible_gpus()), config.launch
    notes = []
    device = Device.cuda if gpus and launch.device is not Device.cpu else Device.cpu
    if launch.device is Device.cuda and not gpus:
        notes.append("there is no GPU here: GPU kernels are not checked")
    ranks = min(wanted, gpus if device is Device.cuda else max(2, cpu_cores()))
    if ranks != wanted:
        notes.append(f"the run has {wanted} ranks, this check {ranks}")
    threads = max(1, cpu_cores() // ranks)
    config.launch = LaunchConfig(
        device=device, nproc_per_node=ranks, threads_per_rank=threads, timeout_s=launch.timeout_s
    )
    return notes


def _without_logs(error: LaunchError) -> str:
    # The logs go with the folder.
    first, *rest = [line for line in error.found.splitlines() if "logs:" not in line]
    return "\n".join([first, *rest[-TRACE_LINES:]])
