"""The process of a rank: redirect its output, record its error, and end it."""

import json
import logging
import os
import signal
import sys
import time
import traceback
import warnings
from typing import Any, Callable, Dict, NoReturn, Optional, TextIO, cast

import torch.distributed as dist

from ftdist.base.errors import EXIT_FAILED, FtdistError
from ftdist.base.output import PipeSafeOutput
from ftdist.base.process import end_with_parent
from ftdist.base.redact import redact
from ftdist.base.terminal import Tee
from ftdist.run.rundir import RunDir


def run_rank(run: RunDir, rank: int, attempt: int, work: Callable[[], int]) -> NoReturn:
    """Do the work of this rank, then end its process.

    The output goes to the rank's log file. If ``work`` raises an error, it is recorded in the run directory, where the
    launcher finds it and shows it as one message.

    Args:
        attempt: Number of this start of the run. It is part of the names of the log file and the error file.
        work: Returns the exit code of the process.
    """
    redirect_output(run, rank, attempt)
    try:
        code = work()
    except BaseException as error:
        exit_process(record_failure(run, rank, attempt, error), wait_for_ranks=False)
    exit_process(code, wait_for_ranks=True)


def quiet_libraries() -> None:
    """Silence the warnings of libraries that the user cannot act on."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    for category in (FutureWarning, DeprecationWarning):
        warnings.simplefilter("ignore", category)
    warnings.filterwarnings("ignore", message=r".*(all_gather_into_tensor|reduce_scatter_tensor).*")


def redirect_output(run: RunDir, rank: int, attempt: int) -> None:
    """Send standard output and standard error of this rank to its log file.

    What rank 0 writes to standard output also stays visible where it was.
    """
    run.logs.mkdir(exist_ok=True)
    log = os.open(run.log_file(rank, attempt), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o666)
    sys.stderr.flush()
    os.dup2(log, 2)
    sys.stdout.flush()
    if rank:
        os.dup2(log, 1)
    else:
        copy = os.fdopen(os.dup(log), "a", buffering=1, encoding="utf-8", errors="replace")
        # A full disk of the log file does not end the output on the terminal, and the other way round.
        sys.stdout = cast(TextIO, Tee(sys.stdout, cast(TextIO, PipeSafeOutput(copy))))
    os.close(log)


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent, the agent of torchrun, ends for any reason (Linux only)."""
    end_with_parent(signal.SIGKILL)


def record_failure(
    run: RunDir, rank: int, attempt: int, error: BaseException, cause: Optional[Dict[str, Any]] = None
) -> int:
    """Write the error of this rank to the file where the launcher looks for it, unless it was written before.

    Args:
        cause: The error record of another rank, if that rank caused this failure. It is written instead.

    Returns:
        The exit code for this process.
    """
    code = error.exit_code if isinstance(error, FtdistError) else EXIT_FAILED
    if run.error_file(rank, attempt).exists():
        return code
    text = str(error) if isinstance(error, FtdistError) else f"{type(error).__name__}: {error}"
    text, trace = redact(text), redact(traceback.format_exc())
    record = {"rank": rank, "host": os.uname().nodename, "time": time.time(), "message": text, "traceback": trace,
              "known": isinstance(error, FtdistError), "exit_code": code}  # fmt: skip
    record = {**(cause or record), "traceback": trace}
    run.error_file(rank, attempt).write_text(json.dumps(record, indent=2), encoding="utf-8")
    print(trace, file=sys.stderr)
    return code


def exit_process(code: int, wait_for_ranks: bool) -> NoReturn:
    """End this process without the interpreter's own shutdown.

    After DeepSpeed has used gloo, its threads can outlive the process group. They would then abort the shutdown, and a
    run that succeeded would look like one that failed.

    Args:
        wait_for_ranks: Wait until all ranks have reached this point. Set it only if every rank ends in this way.
    """
    if wait_for_ranks and dist.is_initialized():
        dist.barrier()
        time.sleep(0.3)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
