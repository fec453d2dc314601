"""The two moments at which the batch script calls back, on the first node of the job: before the ranks, and after."""

import argparse
import os
import platform
import signal
import sys

from ftdist.base.errors import EXIT_DONE, EXIT_FAILED, EXIT_PREEMPTED, FtdistError
from ftdist.config.schema import RunConfig, load_config
from ftdist.launch.attempt import failure, lifecycle
from ftdist.launch.runs import banner, freeze, ready
from ftdist.run.rundir import RunDir

REQUEUE = "requeue"


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", metavar="RUN_DIR")
    parser.add_argument("--job", required=True, help="the job's id")


add_begin_arguments = add_moved_arguments = _add_arguments


def add_end_arguments(parser: argparse.ArgumentParser) -> None:
    _add_arguments(parser)
    parser.add_argument("--code", type=int, required=True, help="exit code of srun")
    parser.add_argument("--asked", action="store_true", help="USR2 came: the time limit is near")
    parser.add_argument("--ended", action="store_true", help="TERM came: Slurm ends or preempts the job")


def begin(args: argparse.Namespace) -> int:
    """Open a new attempt and make model and data ready. The attempt's number goes to RUN_DIR/attempt. A run that was
    asked to stop since it was submitted does not begin, nor one that has been requeued too often."""
    run = RunDir.open(args.run_dir)
    config = load_config(run.config)
    status = run.read_status()
    # Where nobody has just submitted it: requeued, by itself or by Slurm, which asks nobody.
    again = status.get("job_id") == args.job and status.get("state") != "queued"
    requeues = int(status.get("requeues", 0)) + again
    if run.cancel.exists() or requeues > config.launch.max_requeues:
        reason = "cancelled before it began" if run.cancel.exists() else _too_often(config)
        run.write_status(state="preempted", job_id=args.job, exit_reason=reason, exit_code=EXIT_PREEMPTED)
        return EXIT_PREEMPTED
    attempt = lifecycle.next_attempt(run)
    lifecycle.clear_errors(run, attempt)
    lifecycle.clear_rests(run)
    run.write_status(state="starting", attempt=attempt, job_id=args.job, requeues=requeues, pid=None,
                     host=platform.node(), nodes=os.environ.get("SLURM_JOB_NODELIST"), exit_code=None,
                     exit_reason="")  # fmt: skip
    print(f"attempt {attempt} of job {args.job} on {os.environ.get('SLURM_JOB_NODELIST')}", flush=True)
    try:
        freeze.confirm_settings(run, config)
        ready.make_model_ready(config)
        banner.show_data_warnings(config, ready.make_data_ready(config))
    except FtdistError as error:
        reason = str(error).splitlines()[0] if str(error) else "model or data could not be prepared: see the job's log"
        run.write_status(state="failed", exit_reason=reason, exit_code=error.exit_code)
        raise
    run.attempt.write_text(f"{attempt}\n", encoding="utf-8")
    return EXIT_DONE


def end(args: argparse.Namespace) -> int:
    """Say how the attempt ended, and print ``requeue`` where the job must go on by itself. Returns its exit code."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it comes to all of a job that ends; this takes a moment only
    run = RunDir.open(args.run_dir)
    status = run.read_status()
    if status.get("job_id") != args.job or _attempt(run) > int(status["attempt"]):
        print(f"{run.path} has gone on in another job", file=sys.stderr)
        return EXIT_FAILED
    state = status.get("state")
    if state == "done":
        run.write_status(exit_code=EXIT_DONE)
        return EXIT_DONE
    if state == "failed" or (state == "preempted" and not run.attempt.is_file()):  # before there were ranks
        return int(status.get("exit_code") or EXIT_FAILED)
    if state == "preempted" or args.ended:
        return _stopped(run, load_config(run.config), args, saved=state == "preempted")
    attempt = int(status["attempt"])
    nodes = sorted(run.logs.glob(f"node-*.attempt-{_attempt(run)}.log"))
    error = failure.explain_failure(run, attempt, [*nodes, run.job_log(args.job)], args.code)
    run.write_status(state="failed", exit_reason=error.found.splitlines()[0], exit_code=error.exit_code)
    print(f"error: {error}", file=sys.stderr)
    return error.exit_code


def moved(args: argparse.Namespace) -> int:
    """The run waits in the queue again, as another job."""
    run = RunDir.open(args.run_dir)
    run.write_status(state="queued", job_id=args.job, requeues=int(run.read_status().get("requeues", 0)) + 1)
    return EXIT_DONE


def _attempt(run: RunDir) -> int:
    """The attempt of this job; restarts by torchrun count on from it."""
    return int(run.attempt.read_text()) if run.attempt.is_file() else -1


def _too_often(config: RunConfig) -> str:
    return f"was requeued launch.max_requeues={config.launch.max_requeues} times already"


def _stopped(run: RunDir, config: RunConfig, args: argparse.Namespace, saved: bool) -> int:
    requeues = int(run.read_status().get("requeues", 0))
    # Where only TERM came, Slurm has decided: a preempted job it requeues itself, a cancelled one must not go on.
    wanted = (args.asked or not args.ended) and not run.cancel.exists()
    go_on = wanted and requeues < config.launch.max_requeues
    reason = "cancelled" if run.cancel.exists() else "near the time limit" if args.asked else "stopped by Slurm"
    if not saved:
        reason += ", before it could save"
    if wanted and not go_on:
        reason += f", and {_too_often(config)}"
    run.write_status(state="preempted", exit_reason=reason, exit_code=EXIT_PREEMPTED)
    if go_on:
        print(REQUEUE)
    return EXIT_PREEMPTED
