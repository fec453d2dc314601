"""What happens to the process of a rank: its output, its failure and its end."""

import ctypes
import json
import os
import signal
import sys
import time
import traceback
import warnings
from typing import Any, Dict, NoReturn, Optional, TextIO, cast

import torch.distributed as dist

from ftdist.base.errors import EXIT_FAILED, FtdistError
from ftdist.base.redact import redact
from ftdist.base.terminal import Tee
from ftdist.run.rundir import RunDir


def quiet_libraries() -> None:
    """Silence what the user can do nothing about."""
    import logging

    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    for what_will_change in (FutureWarning, DeprecationWarning):  # in calls of libraries by each other, and ours
        warnings.simplefilter("ignore", what_will_change)
    warnings.filterwarnings("ignore", message=r".*(all_gather_into_tensor|reduce_scatter_tensor).*")


def redirect_output(run: RunDir, rank: int, attempt: int) -> None:
    """Standard error and output of every rank go to its log file; what rank 0 prints also stays where it was."""
    run.logs.mkdir(exist_ok=True)
    log = os.open(run.log_file(rank, attempt), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o666)
    sys.stderr.flush()
    os.dup2(log, 2)
    sys.stdout.flush()
    if rank:
        os.dup2(log, 1)
    else:
        sys.stdout = cast(TextIO, Tee(sys.stdout, os.fdopen(os.dup(log), "a", buffering=1, encoding="utf-8")))
    os.close(log)


def die_with_parent() -> None:
    """Ask the kernel to end this process when torchrun's agent is gone, however it went (Linux)."""
    if sys.platform == "linux":
        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def record_failure(
    run: RunDir, rank: int, attempt: int, error: BaseException, instead: Optional[Dict[str, Any]] = None
) -> int:
    """Leave the error where the launcher finds it, once; ``instead`` is the record of another rank that it is due to.
    Returns the exit code."""
    code = error.exit_code if isinstance(error, FtdistError) else EXIT_FAILED
    if run.error_file(rank, attempt).exists():
        return code
    text = str(error) if isinstance(error, FtdistError) else f"{type(error).__name__}: {error}"
    text, trace = redact(text), redact(traceback.format_exc())
    record = {"rank": rank, "host": os.uname().nodename, "time": time.time(), "message": text, "traceback": trace,
              "known": isinstance(error, FtdistError), "exit_code": code}  # fmt: skip
    record = {**(instead or record), "traceback": trace}
    run.error_file(rank, attempt).write_text(json.dumps(record, indent=2), encoding="utf-8")
    print(trace, file=sys.stderr)
    return code


def leave(code: int, in_step: bool) -> NoReturn:
    """End this process at once.

    After DeepSpeed has used gloo, its threads can outlive the process group and abort the interpreter's own exit, so
    that a run that succeeded would look failed. ``in_step``: all ranks end here, wait for each other.
    """
    if in_step and dist.is_initialized():
        dist.barrier()
        time.sleep(0.3)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
