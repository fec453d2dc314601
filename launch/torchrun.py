"""``torchrun … -m ftdist train …``: torchrun, started by the user, runs this verb once for each rank."""

import argparse
import os
import platform
import sys
import time
from pathlib import Path
from typing import Callable, NoReturn, Optional, Tuple

from ftdist.config import RunConfig
from ftdist.errors import FtdistError, LaunchError
from ftdist.rundir import RunDir, read_json

from . import check, compose
from .plan import ranks_env

MakeReady = Callable[[RunConfig, Optional[Tuple[int, int]]], RunDir]


def is_parent() -> bool:
    """Whether torchrun started this process as one of its ranks."""
    return "TORCHELASTIC_RUN_ID" in os.environ and "RANK" in os.environ


def join(args: argparse.Namespace, make_ready: MakeReady) -> int:
    """Become a rank of the run: all compose the same, rank 0 alone freezes and tells the others where.

    Raises:
        FtdistError: on rank 0; the others wait, so that its message is not lost among theirs.
    """
    first = os.environ["RANK"] == "0"
    try:
        config = compose.compose(args)
        per_node = int(os.environ["LOCAL_WORLD_SIZE"])
        ranks = (per_node, int(os.environ["WORLD_SIZE"]) // per_node)
        check.resolve_ranks(config, ranks)
        if not first:
            become_rank(config, ["--from-store"])
        run = _frozen_before(config) if int(os.environ["TORCHELASTIC_RESTART_COUNT"]) else make_ready(config, ranks)
        become_rank(config, [str(run.path), "--to-store"])
    except FtdistError as error:
        if first:
            raise
        time.sleep(5)
        return error.exit_code


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


def become_rank(config: RunConfig, arguments: list[str]) -> NoReturn:
    """Replace this process with a rank of the run."""
    sys.stdout.flush()
    os.environ.update(ranks_env(config))
    os.execv(sys.executable, [sys.executable, "-m", "ftdist.train.main", *arguments])
