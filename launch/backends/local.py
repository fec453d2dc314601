"""Start a run on this machine."""

from ftdist.base.errors import ConfigError
from ftdist.config.launch import LaunchKind
from ftdist.config.schema import RunConfig
from ftdist.launch.attempt import lifecycle
from ftdist.launch.attempt.command import plan_local, rank_program
from ftdist.launch.attempt.torchrun import run_ranks
from ftdist.launch.backends.foreground import ForegroundBackend, resolve_device, resolve_ranks_per_node
from ftdist.launch.backends.slurm.ownership import owned
from ftdist.run.rundir import RunDir


class LocalBackend(ForegroundBackend):
    """torchrun on this machine."""

    kind = LaunchKind.local
    on_this_machine = True

    def resolve(self, config: RunConfig) -> None:
        launch = config.launch
        gpus = resolve_device(launch)
        if launch.nnodes > 1:
            raise ConfigError(
                f"launch.nnodes={launch.nnodes}, but launch.kind=local starts ranks on this machine only",
                "a launch.kind that starts ranks on several machines",
                "use launch=slurm, launch=nodes or launch=deepspeed, or start torchrun yourself on every machine: "
                f"torchrun --nnodes {launch.nnodes} --nproc-per-node {launch.nproc_per_node or max(gpus, 1)} "
                "--rdzv-backend c10d --rdzv-endpoint FIRST_NODE:29500 -m ftdist train …",
            )
        resolve_ranks_per_node(launch, gpus)

    def dry_run(self, config: RunConfig, run: RunDir, changed: bool = False) -> str:
        return plan_local(config, *rank_program(str(run.path), lifecycle.next_attempt(run))).shell()

    def start(self, config: RunConfig, run: RunDir) -> int:
        self.check_start(config)
        with owned(run):
            attempt = lifecycle.begin(run, self.kind)
            plan = plan_local(config, *rank_program(str(run.path), attempt))
            log = run.logs / f"launcher.attempt-{attempt}.log"
            return lifecycle.conclude(run, attempt, run_ranks(plan, log, run.preempt), [log])
