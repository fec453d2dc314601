"""Start the run of a frozen run directory in the way that its config says."""

import shlex

from ftdist.base.errors import EXIT_DONE
from ftdist.base.output import quoted_path
from ftdist.config.schema import LaunchKind, RunConfig
from ftdist.launch.backends import deepspeed, local, nodes
from ftdist.launch.backends.base import plan_local
from ftdist.launch.backends.slurm import client, follow
from ftdist.run.rundir import RunDir


def dry_run(config: RunConfig, run: RunDir) -> str:
    """What would be started, as text."""
    if config.launch.kind is LaunchKind.slurm:
        return f"{run.submit.read_text(encoding='utf-8')}\nsubmit it with: sbatch {shlex.quote(str(run.submit))}"
    if config.launch.kind is LaunchKind.nodes:
        return nodes.dry_run(config, run)
    if config.launch.kind is LaunchKind.deepspeed:
        deepspeed.write_files(config, run)
        return deepspeed.plan_deepspeed(config, run, 0).shell()
    return plan_local(config, "ftdist.train.main", [str(run.path)]).shell()


def start_run(config: RunConfig, run: RunDir) -> int:
    """Start or go on with a run. Returns its exit code; of a job that is only submitted, 0.

    Raises:
        LaunchError: it could not be started, or it failed.
    """
    if config.launch.kind is LaunchKind.slurm:
        job = client.submit(run)
        print(f"submitted job {job}", flush=True)
        if config.launch.wait:
            return follow.follow(run, job)
        place = quoted_path(run.path)
        print(f"ftdist status {place}\nftdist logs -f {place}\nftdist cancel {place}")
        return EXIT_DONE
    if config.launch.kind is LaunchKind.nodes:
        return nodes.launch_nodes(config, run)
    if config.launch.kind is LaunchKind.deepspeed:
        return deepspeed.launch_deepspeed(config, run)
    return local.launch_run(config, run)
