"""``torchrun … -m ftdist train …``: the user starts torchrun, and torchrun starts this verb once for each rank. So does
``srun --ntasks-per-node=N ftdist train …``.

Each of these processes composes the same config and runs its rank as a child process. Rank 0 freezes the run, and tells
the other ranks where it is.
"""

import argparse
import contextlib
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, List, Optional

from ftdist.base.errors import EXIT_DONE, FtdistError, LaunchError
from ftdist.base.process import end_with_parent
from ftdist.config.launch import LaunchKind
from ftdist.config.schema import RunConfig
from ftdist.launch.attempt import lifecycle, signals, torchrun
from ftdist.launch.attempt.command import ranks_env
from ftdist.launch.attempt.machine import check_torch
from ftdist.launch.backends.slurm import srun_task
from ftdist.launch.backends.slurm.ownership import owned
from ftdist.launch.config import compose
from ftdist.launch.runs import banner, freeze, inputs, resolve
from ftdist.launch.runs.pipeline import prepare_run, refuse_rungs
from ftdist.run.rundir import RunDir

ERROR_SHOWN_S = 5.0
"""Seconds that the other ranks wait after an error, so that the message of rank 0 is not lost among theirs."""


def is_rank() -> bool:
    """Return whether torchrun, or srun with several tasks, started this process as one of its ranks."""
    return _has_torchruns_names() or srun_task.is_task()


def _has_torchruns_names() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ and "RANK" in os.environ


def is_first_rank() -> bool:
    """Return whether this process prints: it is rank 0, or it is not a rank."""
    return not is_rank() or os.environ["RANK" if _has_torchruns_names() else "SLURM_PROCID"] == "0"


def _among_others(config: RunConfig) -> "contextlib.AbstractContextManager[None]":
    """Connect the tasks of the user's srun inside the ``with`` block. Ranks of torchrun are connected already."""
    return (
        contextlib.nullcontext() if _has_torchruns_names() else srun_task.together(config.launch.slurm.address_suffix)
    )


def train(args: argparse.Namespace) -> int:
    """Run one rank of a new run. Returns the exit code.

    Raises:
        FtdistError: the run cannot be started. Only rank 0 raises it.
    """
    started = time.monotonic()
    try:
        config = compose.compose(args)
        refuse_rungs(config)
        with _among_others(config):
            per_node = int(os.environ["LOCAL_WORLD_SIZE"])
            ranks = (per_node, int(os.environ["WORLD_SIZE"]) // per_node)
            resolve.resolve_ranks(config, ranks)
            check_torch(config.launch)
            if not is_first_rank():
                return _run_other_rank(config, ["--from-store"])
            restarted = int(os.environ["TORCHELASTIC_RESTART_COUNT"]) > 0
            run = _frozen_before(config) if restarted else prepare_run(config, ranks)()
            return _run_first_rank(config, run, 0, started)
    except FtdistError as error:
        if is_first_rank():
            raise
        time.sleep(ERROR_SHOWN_S)
        return error.exit_code


def resume(config: RunConfig, run: RunDir) -> int:
    """Run one rank of a run that is resumed. Returns the exit code.

    Raises:
        ConfigError: deepspeed.json was edited, or torch cannot use the GPUs. On rank 0 only.
        LaunchError: the run failed. On rank 0 only.
    """
    number = lifecycle.next_attempt(run)  # the same on all ranks: it changes only when all have started
    with _among_others(config):
        if is_first_rank():
            return _resume_first_rank(config, run, number)
        # It waits for rank 0, which may find that the run belongs to another launcher or job.
        return _run_other_rank(config, ["--from-store", "--attempt", str(number)])


def _resume_first_rank(config: RunConfig, run: RunDir, number: int) -> int:
    check_torch(config.launch)
    with owned(run):
        freeze.confirm_settings(run, config)
        inputs.prepare_run_data(config, run)
        lifecycle.clear(run, number)
        banner.show_resume(run)
        banner.show_ignored_variables(config, config.track.wandb)
        return _run_first_rank(config, run, number, time.monotonic())


def _frozen_before(config: RunConfig) -> RunDir:
    """Return the run that was frozen before torchrun restarted its ranks. Its provenance names the same torchrun."""
    places = (
        [Path(config.run_dir)] if config.run_dir else sorted(Path(config.runs_dir).expanduser().iterdir(), reverse=True)
    )
    for place in places:
        run = RunDir(place)
        if run.config.is_file() and run.provenance.is_file():
            origin = run.read_provenance()
            if (origin.get("host"), origin.get("agent_pid")) == (platform.node(), os.getppid()):
                return run
    raise LaunchError(
        f"torchrun restarted the ranks, but the run directory of its first start was not found in {config.runs_dir}",
        "the run directory that rank 0 wrote at the first start",
        "ftdist resume RUN_DIR, or start torchrun with --max-restarts=0 and run_dir=FOLDER",
    )


def _run_first_rank(config: RunConfig, run: RunDir, attempt: int, started: float) -> int:
    """Run rank 0 and print how the run ended. A run that was stopped returns 0 under torchrun, which would treat 75 as
    a crash."""
    with owned(run):
        # The attempt itself begins when all ranks have started: before that, others may not have read its number.
        run.write_status(**lifecycle.owner(run, LaunchKind.local))
        code = _run_rank(config, [str(run.path), "--to-store", "--attempt", str(attempt)], run.preempt)
        code = lifecycle.conclude(run, attempt, code, [run.logs / "torchrun.log"])
    banner.show_next(run, code, time.monotonic() - started)
    return code if srun_task.is_task() else EXIT_DONE


def _run_other_rank(config: RunConfig, arguments: List[str]) -> int:
    """Run another rank. Returns its exit code as a shell would: 128 plus the number of a signal."""
    code = _run_rank(config, arguments)
    return code if code >= 0 else 128 - code


def _run_rank(config: RunConfig, arguments: List[str], request: Optional[Path] = None) -> int:
    """Run a rank as a child of this process, which then removes its temporary files.

    torchrun and srun send signals to this process and to the child. Only the child handles SIGTERM. SIGINT touches
    ``request``, and all ranks save and stop. So does SIGUSR2, which ``--signal=USR2@300`` sends before a time limit. A
    second SIGINT, or one after ``ftdist cancel``, ends the child immediately.

    Args:
        request: the file that asks the ranks to stop. None on ranks other than 0, which need not ask again.
    """
    child: Optional[subprocess.Popen[bytes]] = None

    def interrupt(*_: Any) -> None:
        if request is None:
            return
        if request.exists() and child is not None:
            child.kill()
        else:
            request.touch()
            print(f"\nstopping: {signals.SAVES}", file=sys.stderr, flush=True)

    end_with_parent(signal.SIGKILL)
    sys.stdout.flush()
    signal.signal(signal.SIGUSR2, lambda *_: request.touch() if request is not None else None)
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.signal(signal.SIGINT, interrupt)
    with torchrun.temporary_folder() as temporary:
        environment = {**os.environ, **ranks_env(config), "TMPDIR": temporary}
        child = subprocess.Popen([sys.executable, "-m", "ftdist.train.main", *arguments], env=environment,
                                 preexec_fn=_ignore_interrupts)  # fmt: skip
        code = child.wait()
    if code == 0:
        _remove_folder_of_torchrun()
    return code


def _ignore_interrupts() -> None:
    for number in (signal.SIGINT, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


def _remove_folder_of_torchrun() -> None:
    """Remove the folders that torchrun made for error files and leaves behind. The last rank finds them all empty."""
    folder = Path(os.environ.get("TORCHELASTIC_ERROR_FILE", "")).parent
    with contextlib.suppress(OSError):  # the folder of another rank is still there, or something is in it
        while any(part.name.startswith("torchelastic_") for part in (folder, *folder.parents)):
            folder.rmdir()
            folder = folder.parent
