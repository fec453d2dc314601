"""``torchrun … -m ftdist train …``: torchrun, started by the user, runs this verb once for each rank."""

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
from ftdist.base.json_files import read_json
from ftdist.config.schema import RunConfig
from ftdist.launch.attempt import lifecycle, process, signals
from ftdist.launch.backends.base import ranks_env
from ftdist.launch.config import compose
from ftdist.launch.runs import banner, freeze, resolve
from ftdist.launch.runs.pipeline import make_ready
from ftdist.run.rundir import RunDir


def is_parent() -> bool:
    """Whether torchrun started this process as one of its ranks."""
    return "TORCHELASTIC_RUN_ID" in os.environ and "RANK" in os.environ


def is_first() -> bool:
    """Whether this process is the one that prints: rank 0, or not one of torchrun's at all."""
    return not is_parent() or os.environ["RANK"] == "0"


def join(args: argparse.Namespace) -> int:
    """Be a rank of the run: all compose the same, rank 0 alone freezes and tells the others where.

    Returns the exit code.

    Raises:
        FtdistError: on rank 0; the others wait, so that its message is not lost among theirs.
    """
    started = time.monotonic()
    try:
        config = compose.compose(args)
        per_node = int(os.environ["LOCAL_WORLD_SIZE"])
        ranks = (per_node, int(os.environ["WORLD_SIZE"]) // per_node)
        resolve.resolve_ranks(config, ranks)
        if not is_first():
            return _be_rank(config, ["--from-store"])
        restarted = int(os.environ["TORCHELASTIC_RESTART_COUNT"]) > 0
        run = _frozen_before(config) if restarted else make_ready(config, ranks)()
        return _lead(config, run, ["--to-store"], started)
    except FtdistError as error:
        if is_first():
            raise
        time.sleep(5)
        return error.exit_code


def resume(config: RunConfig, run: RunDir) -> int:
    """Be a rank of a run that goes on. Returns the exit code.

    Raises:
        LaunchError: on rank 0: the run failed.
    """
    attempt = ["--attempt", str(lifecycle.next_attempt(run))]
    if not is_first():
        return _be_rank(config, [str(run.path), *attempt])
    freeze.confirm_settings(run, config)
    run.preempt.unlink(missing_ok=True)
    banner.show_resume(run)
    return _lead(config, run, attempt, time.monotonic())


def _frozen_before(config: RunConfig) -> RunDir:
    # A restart by torchrun: the same agent, so the same parent process on the same host.
    places = (
        [Path(config.run_dir)] if config.run_dir else sorted(Path(config.runs_dir).expanduser().iterdir(), reverse=True)
    )
    for place in places:
        run = RunDir(place)
        if run.config.is_file() and run.provenance.is_file():
            origin = read_json(run.provenance)
            if (origin.get("host"), origin.get("agent_pid")) == (platform.node(), os.getppid()):
                return run
    raise LaunchError(f"no run of this torchrun was found in {config.runs_dir}", "the run that was frozen at its start")


def _lead(config: RunConfig, run: RunDir, arguments: List[str], started: float) -> int:
    """Rank 0, and what is said at the end. A run that was stopped ends well: torchrun would take 75 for a crash."""
    code = _run_rank(config, [str(run.path), *arguments], run.preempt)
    code = lifecycle.conclude(run, 0, run.logs / "torchrun.log", code)
    banner.show_next(run, code, time.monotonic() - started)
    return EXIT_DONE


def _be_rank(config: RunConfig, arguments: List[str]) -> int:
    """A rank other than the first. Returns its exit code, as a shell would."""
    code = _run_rank(config, arguments)
    return code if code >= 0 else 128 - code


def _run_rank(config: RunConfig, arguments: List[str], preempt: Optional[Path] = None) -> int:
    """Run a rank as a child of this process, so that somebody is left to clear away its temporary files.

    torchrun sends the signals that it gets to this process and the child alike. SIGTERM is the child's. SIGINT touches
    ``preempt``, and all ranks save and stop; a second one, or one after ``ftdist cancel``, ends the child at once.
    """
    child: Optional[subprocess.Popen[bytes]] = None

    def interrupt(*_: Any) -> None:
        if preempt is None:  # rank 0 sees to it
            return
        if preempt.exists() and child is not None:
            child.kill()
        else:
            preempt.touch()
            print(f"\nstopping: {signals.SAVES}", file=sys.stderr, flush=True)

    signals.end_with_launcher(signal.SIGKILL)
    sys.stdout.flush()
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.signal(signal.SIGINT, interrupt)
    with process.scratch_folder() as temporary:
        environment = {**os.environ, **ranks_env(config), "TMPDIR": temporary}
        child = subprocess.Popen([sys.executable, "-m", "ftdist.train.main", *arguments], env=environment,
                                 preexec_fn=_ignore_interrupts)  # fmt: skip
        code = child.wait()
    if code == 0:
        _clear_torchruns_folder()
    return code


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _clear_torchruns_folder() -> None:
    """torchrun makes a folder for each rank's errors, inside one for all, and leaves them: the last rank clears it."""
    folder = Path(os.environ.get("TORCHELASTIC_ERROR_FILE", "")).parent
    with contextlib.suppress(OSError):  # another rank's is still there, or something is in it
        while any(part.name.startswith("torchelastic_") for part in (folder, *folder.parents)):
            folder.rmdir()
            folder = folder.parent
