"""Start a run on this machine."""

from ftdist.config.schema import LaunchKind, RunConfig
from ftdist.launch.attempt.command import plan_local, rank_program
from ftdist.launch.attempt.lifecycle import begin, conclude
from ftdist.launch.attempt.process import start
from ftdist.run.rundir import RunDir


def launch_run(config: RunConfig, run: RunDir) -> int:
    """Start or go on with the run of a run directory, and wait for it. Returns the exit code.

    Raises:
        LaunchError: a rank failed; the message is that of the first.
    """
    attempt = begin(run, LaunchKind.local)
    plan = plan_local(config, *rank_program(str(run.path), attempt))
    log = run.logs / f"launcher.attempt-{attempt}.log"
    return conclude(run, attempt, start(plan, log, run.preempt), [log])
