"""The verbs ``_begin``, ``_end`` and ``_moved``, which the batch script calls on the first node of a job."""

import argparse
import os
import signal
import sys
from typing import Tuple

from ftdist.base.errors import EXIT_DONE, EXIT_FAILED, EXIT_PREEMPTED, FtdistError, LaunchError
from ftdist.base.output import quoted_path
from ftdist.config.frozen import load_config
from ftdist.config.launch import LaunchKind
from ftdist.config.schema import RunConfig
from ftdist.launch.attempt import failure, lifecycle, machine
from ftdist.launch.backends.slurm import answers, client, ownership, submission
from ftdist.launch.backends.slurm.follow import before_this
from ftdist.launch.runs import banner, freeze, inputs
from ftdist.launch.runs.programs import ProgramKilled
from ftdist.run.identity import check_files
from ftdist.run.rundir import NEAR_LIMIT, PAUSED, RunDir
from ftdist.run.timeline import PREPARING, QUEUE, STARTING

MAX_IDLE = 2
"""Number of consecutive attempts without a newer checkpoint, after which a job does not requeue itself."""
BY_SLURM = "Slurm requeued the job: a node was lost, or a job of higher priority ended it before it could save"
"""The reason that is recorded for an attempt that stopped without recording one."""
REQUEUE = "requeue"
"""What ``_end`` prints if the script must requeue the job."""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", metavar="RUN_DIR")
    parser.add_argument("--job", required=True, help="id of the job")


def add_moved_arguments(parser: argparse.ArgumentParser) -> None:
    _add_arguments(parser)
    parser.add_argument("--because", default="", help="what scontrol said when it refused to requeue the job")


def add_begin_arguments(parser: argparse.ArgumentParser) -> None:
    _add_arguments(parser)
    parser.add_argument("--old-request", action="store_true",
                        help="RUN_DIR/preempt existed when the script began")  # fmt: skip


def add_end_arguments(parser: argparse.ArgumentParser) -> None:
    _add_arguments(parser)
    parser.add_argument("--code", type=int, required=True, help="exit code of srun")
    parser.add_argument("--asked", action="store_true", help="SIGUSR2 arrived: the time limit is near")
    parser.add_argument("--ended", action="store_true", help="SIGTERM arrived: Slurm ends or preempts the job")


def begin(args: argparse.Namespace) -> int:
    """Begin an attempt: prepare model and data before the ranks start, and write its number to RUN_DIR/attempt.

    A run does not begin if it was asked to stop after it was submitted, or if it has been requeued too often.

    Raises:
        LaunchError: the run belongs to another job or launcher. Nothing has been changed.
    """
    run = RunDir.open(args.run_dir)
    config = load_config(run.config)
    ownership.take(run, ownership.this_job(args.job))
    run.attempt.unlink(missing_ok=True)
    if args.old_request:
        run.preempt.unlink(missing_ok=True)
    status = run.read_status()
    # A job that was not just submitted has been requeued, by itself or by Slurm.
    again = status.get("job_id") == args.job and status.get("state") != "queued"
    requeues = int(status.get("requeues", 0)) + again
    if run.cancel.exists() or requeues > config.launch.max_requeues:
        often = f"not started: requeued more often than launch.max_requeues={config.launch.max_requeues} allows"
        reason = "cancelled before it began" if run.cancel.exists() else often
        lifecycle.mark_stopped(run, reason, job_id=args.job, exit_code=EXIT_PREEMPTED)
        return EXIT_PREEMPTED
    nodes = os.environ.get("SLURM_JOB_NODELIST")
    # A request to stop that exists now was made after the script began, so it is meant for this attempt.
    attempt = lifecycle.begin(run, LaunchKind.slurm, keep_requests=True, job_id=args.job, nodes=nodes, pid=None,
                              requeues=requeues, begun_after=status.get("last_checkpoint_step"),
                              exit_code=None, exit_reason="")  # fmt: skip
    why = before_this(status) or (str(status.get("exit_reason") or BY_SLURM) if again else "")
    print(f"attempt {attempt} of job {args.job} on {nodes}" + (f", after: {why}" if why else ""), flush=True)
    run.record_phase(PREPARING, attempt)
    try:
        machine.check_torch(config.launch)
        freeze.confirm_settings(run, config)
        check_files(run, config)
        inputs.prepare_model(config)
        banner.show_data_warnings(config, inputs.prepare_run_data(config, run))
    except FtdistError as error:
        if isinstance(error, ProgramKilled) and error.number == signal.SIGTERM:  # _end decides what follows
            print(f"note: {error.found}", file=sys.stderr)
            return 128 + signal.SIGTERM
        reason = str(error).partition("\n")[0] or "model or data could not be prepared: see the job's log"
        lifecycle.mark_failed(run, error, exit_reason=reason, exit_code=error.exit_code)
        raise
    run.attempt.write_text(f"{attempt}\n", encoding="utf-8")
    run.record_phase(STARTING, attempt)
    return EXIT_DONE


def end(args: argparse.Namespace) -> int:
    """Conclude an attempt after the ranks have ended, and print ``requeue`` if the job must be requeued.

    Returns:
        The exit code of the attempt.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # Slurm sends it to every process; this one ends soon
    run = RunDir.open(args.run_dir)
    owner, now = ownership.this_job(args.job), ownership.current(run)
    if not ownership.holds(now, owner) and now is not None and not now.ended:
        print(f"{run.path} belongs to {now.describe()}", file=sys.stderr)
        return EXIT_FAILED
    try:
        return _conclude(run, args)
    finally:
        ownership.release(run, owner)


def _conclude(run: RunDir, args: argparse.Namespace) -> int:
    status = run.read_status()
    if status.get("job_id") != args.job or _attempt(run) > int(status["attempt"]):
        print(f"{run.path} continues in another job", file=sys.stderr)
        return EXIT_FAILED
    state = status.get("state")
    if state in ("done", PAUSED):
        run.write_status(exit_code=EXIT_DONE)
        return EXIT_DONE
    if state == "failed" or (state == "preempted" and not run.attempt.is_file()):  # before the ranks started
        return int(status.get("exit_code") or EXIT_FAILED)
    number = _attempt(run)
    logs = [*sorted(run.logs.glob(f"node-*.attempt-{number}.log")), run.job_log(args.job)]
    cause = "" if state == "preempted" else failure.ended_from_outside(run, number, logs, args.code)
    before_ranks = args.asked and not any(run.logs.glob(f"rank-*.attempt-{number}.log"))
    reason, requeue = _stop_reason(run, load_config(run.config), args, state == "preempted", cause)
    stopped = reason if state == "preempted" or args.ended or cause or before_ranks else ""
    try:
        if number < 0 and not stopped:
            raise _failed_before_ranks(run, args.code)
        lifecycle.conclude(run, number, args.code, logs, stopped)
    except LaunchError as error:
        lifecycle.mark_failed(run, error)
        run.write_status(exit_code=error.exit_code)
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    lifecycle.mark_stopped(run, reason, exit_code=EXIT_PREEMPTED)
    print(f"stopped: {reason}", file=sys.stderr)  # into the job's log; the script reads the standard output
    if requeue:
        run.record_phase(QUEUE, lifecycle.next_attempt(run))
        print(REQUEUE)
    return EXIT_PREEMPTED


def _failed_before_ranks(run: RunDir, code: int) -> LaunchError:
    """Return the error for ``_begin``, if it has ended without recording a reason."""
    number, resume = code - 128, f"ftdist resume {quoted_path(run.path)}"
    how = f"was killed by {failure.signal_name(number)}" if number > 0 else f"ended with exit code {code}"
    if number == signal.SIGKILL:
        resume += " launch.slurm.mem=SIZE, more than before: the usual cause is that the job ran out of memory"
    return LaunchError(f"the preparation of the model and the data {how}, before the ranks started\n  logs: {run.logs}",
                       fix=resume)  # fmt: skip


def moved(args: argparse.Namespace) -> int:
    """Write into status.json that the run waits in the queue as another job: ``--job`` is what sbatch printed.

    Raises:
        LaunchError: sbatch printed no job id, and the queue shows no new job.
    """
    run = RunDir.open(args.run_dir)
    status = run.read_status()
    job = answers.job_id(args.job)
    if job is None and client.available():
        job = submission.find_submitted(run.submit, {str(status.get("job_id")).split("_")[0]})
    if job is None:
        resume = f"ftdist resume {quoted_path(run.path)}"
        raise LaunchError(f"sbatch printed no job id: {args.job!r}", "the id of a submitted job",
                          f"if `squeue --me` does not show a job of the run: {resume}")  # fmt: skip
    run.write_status(state="queued", job_id=job, requeues=int(status.get("requeues", 0)) + 1)
    why = f" (scontrol: {'; '.join(args.because.splitlines())})" if args.because else ""
    print(f"Slurm did not requeue this job{why}, so the run continues in another one: job {job}", file=sys.stderr)
    return EXIT_DONE


def _attempt(run: RunDir) -> int:
    """Return the number of the attempt that ``_begin`` began. Restarts by torchrun get the numbers after it."""
    return int(run.attempt.read_text()) if run.attempt.is_file() else -1


def _count_idle(run: RunDir) -> int:
    """Return how many attempts in a row have ended without a newer checkpoint, including this one."""
    status = run.read_status()
    idle = int(status.get("idle", 0)) + 1 if status.get("last_checkpoint_step") == status.get("begun_after") else 0
    run.write_status(idle=idle)
    return idle


def _stop_reason(run: RunDir, config: RunConfig, args: argparse.Namespace, saved: bool, cause: str) -> Tuple[str, bool]:
    """Return why an attempt stopped, if it did, and whether the job must be requeued.

    Args:
        saved: whether the ranks saved a checkpoint when they stopped.
        cause: what ended the ranks from outside, if they did not stop by themselves.
    """
    status = run.read_status()
    requeues, idle = int(status.get("requeues", 0)), _count_idle(run)
    # If only SIGTERM arrived, Slurm has decided: it requeues a preempted job itself, and a cancelled one must not
    # continue.
    near = args.asked or status.get("exit_reason") == NEAR_LIMIT
    wanted = (near or not args.ended) and not run.cancel.exists()
    requeue = wanted and requeues < config.launch.max_requeues and idle < MAX_IDLE
    reason = NEAR_LIMIT if near else cause or "stopped by Slurm"
    reason = "cancelled" if run.cancel.exists() else reason
    if not saved:
        reason += ", before it could save"
    if wanted and idle >= MAX_IDLE:
        reason += f"; not requeued, because {idle} attempts in a row saved no newer checkpoint: raise launch.slurm.time"
    elif wanted and not requeue:
        reason += f"; not requeued, because the limit of launch.max_requeues={config.launch.max_requeues} is reached"
    return reason, requeue
