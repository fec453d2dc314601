"""Start a run through DeepSpeed's launcher, for clusters that require it.

DeepSpeed's launcher starts the ranks on all machines of a hostfile with pdsh (over ssh), Slurm or OpenMPI. It does not
know the run directory. Requests to stop and the state of the run are files there, which all machines see.
"""

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import List, Tuple

import ftdist
from ftdist.base.errors import LaunchError
from ftdist.base.output import USER_FOLDER
from ftdist.config.launch import LaunchKind, Runner
from ftdist.config.schema import RunConfig
from ftdist.launch.attempt import lifecycle, signals
from ftdist.launch.attempt.command import LaunchPlan, ranks_env
from ftdist.launch.attempt.companion import end_group, stop_run_if_killed
from ftdist.launch.backends.foreground import ForegroundBackend, resolve_device, resolve_ranks_per_node
from ftdist.launch.backends.hostfile import PLAIN, resolve_hosts
from ftdist.launch.backends.rendezvous import address, check_port
from ftdist.launch.backends.slurm.ownership import owned
from ftdist.run.rundir import RunDir

POLL_S = 0.2
SCRIPT = Path(ftdist.__file__).parent / "train" / "from_deepspeed.py"
LAUNCHER_LINE = re.compile(r"^(?:\S+: )?\[\d{4}-\d\d-\d\d [^]]+\] \[[A-Z]+\] ")
"""A line that DeepSpeed's launcher itself prints, not a rank."""
TOOLS = {Runner.pdsh: ("pdsh", "pdsh"), Runner.slurm: ("srun", "slurm-client"),
         Runner.openmpi: ("mpirun", "openmpi-bin")}  # fmt: skip
"""The command that each runner calls, and Debian's package for it."""


class DeepspeedBackend(ForegroundBackend):
    """DeepSpeed's launcher, with one of its runners."""

    kind = LaunchKind.deepspeed

    def resolve(self, config: RunConfig) -> None:
        gpus = resolve_device(config.launch)
        resolve_hosts(config)
        resolve_ranks_per_node(config.launch, gpus)

    def dry_run(self, config: RunConfig, run: RunDir, changed: bool = False) -> str:
        if not changed:
            write_files(config, run)
        return plan_deepspeed(config, run, lifecycle.next_attempt(run)).shell()

    def start(self, config: RunConfig, run: RunDir) -> int:
        self.check_start(config)
        tool, package = TOOLS[config.launch.deepspeed.runner]
        if shutil.which(tool) is None:
            raise LaunchError(f"there is no {tool} on this machine",
                              f"the command that launch.deepspeed.runner={config.launch.deepspeed.runner.name} uses",
                              f"apt install {package}")  # fmt: skip
        if address(config) in ("localhost", "127.0.0.1", os.uname().nodename):
            check_port(config)
        with owned(run):
            attempt = lifecycle.begin(run, self.kind)
            write_files(config, run)
            log = run.logs / f"launcher.attempt-{attempt}.log"
            prefixes = tuple(f"{host}: " for host in config.launch.nodes.hosts)  # the prefixes that pdsh adds to lines
            code = _run(plan_deepspeed(config, run, attempt), run, log, prefixes)
            return lifecycle.conclude(run, attempt, code, [log])


def plan_deepspeed(config: RunConfig, run: RunDir, attempt: int) -> LaunchPlan:
    """Plan to start the ranks through DeepSpeed's launcher."""
    launch, runner = config.launch, config.launch.deepspeed.runner
    options: List[str] = []
    if runner is Runner.slurm:
        options = [*launch.deepspeed.options, f"--nodes={launch.nnodes}", f"--ntasks-per-node={launch.nproc_per_node}",
                    f"--nodelist={','.join(launch.nodes.hosts)}", "--kill-on-bad-exit=1"]  # fmt: skip
    elif runner is Runner.openmpi:  # by default mpirun binds each rank, with all its threads, to one core
        options = ["--bind-to", "none", "--mca", "plm_rsh_agent", " ".join(_ssh(config))]
    argv = [
        sys.executable, "-m", "deepspeed.launcher.runner", "--hostfile", str(hostfile(run)), "--force_multi",
        "--launcher", runner.name, *(["--launcher_args", shlex.join(options)] if options else []),
        "--master_addr", address(config), "--master_port", str(launch.nodes.port), "--no_ssh_check", "--no_local_rank",
        str(SCRIPT), str(run.path), "--attempt", str(attempt), *(["--watch"] if runner is Runner.pdsh else []),
    ]  # fmt: skip
    env = {**ranks_env(config), "DS_ENV_FILE": str(env_file(run)), "PDSH_SSH_ARGS_APPEND": " ".join(_ssh(config)[1:])}
    return LaunchPlan(argv, env)


def _ssh(config: RunConfig) -> List[str]:
    command, *options = config.launch.nodes.ssh.split()
    return [command, "-o", "BatchMode=yes", "-o", "ConnectTimeout=20", *options]


def hostfile(run: RunDir) -> Path:
    """Return the path of the hostfile that DeepSpeed's launcher reads."""
    return run.path / "hostfile"


def env_file(run: RunDir) -> Path:
    """Return the path of the file from which DeepSpeed's launcher takes the environment of the ranks."""
    return run.path / "deepspeed.env"


def write_files(config: RunConfig, run: RunDir) -> None:
    """Write the files that DeepSpeed's launcher reads into the run directory."""
    launch = config.launch
    hosts = [f"{host} slots={launch.nproc_per_node}\n" for host in launch.nodes.hosts]
    hostfile(run).write_text("".join(hosts), encoding="utf-8")
    # mpirun gives rank 0 a terminal, but what it prints goes to a file: TTY_COMPATIBLE=0 turns off rich's live display.
    env = {**ranks_env(config), "MASTER_ADDR": address(config), "MASTER_PORT": str(launch.nodes.port),
           "TTY_COMPATIBLE": "0"}  # fmt: skip
    if PLAIN.fullmatch(here := str(Path.cwd())) and "," not in here:  # a comma separates variables for srun
        env[USER_FOLDER] = here
    env_file(run).write_text("".join(f"{name}={value}\n" for name, value in env.items()), encoding="utf-8")


def _run(plan: LaunchPlan, run: RunDir, log: Path, prefixes: Tuple[str, ...]) -> int:
    # The output goes to a file. If it went to a pipe and this process were killed, pdsh would end before the ranks
    # have saved.
    printed = log.with_suffix(".out")
    with log.open("ab") as errors, printed.open("wb") as out:
        child = subprocess.Popen(plan.argv, env={**os.environ, **plan.env}, cwd=run.path, stdin=subprocess.DEVNULL,
                                 stdout=out, stderr=errors, start_new_session=True)  # fmt: skip
    ended = threading.Event()
    relay = threading.Thread(target=_relay, args=(printed, log, prefixes, ended), daemon=True)
    relay.start()
    with stop_run_if_killed(run.path, group=child.pid):
        try:
            with signals.touch_on_signals(run.preempt, lambda: end_group(child.pid)):
                return child.wait()
        finally:
            end_group(child.pid)
            child.wait()
            ended.set()
            relay.join()


def _relay(printed: Path, log: Path, prefixes: Tuple[str, ...], ended: threading.Event) -> None:
    """Copy what rank 0 prints to the terminal, and what DeepSpeed's launcher prints to its log, until ``ended``.

    Args:
        printed: the output of DeepSpeed's launcher.
        prefixes: the text that pdsh adds before each line, for each host.
    """
    with printed.open("rb") as out, log.open("ab", buffering=0) as file:
        last = False
        while not last:
            last = ended.wait(POLL_S)
            for raw in out:
                line = raw.decode(errors="replace")
                if LAUNCHER_LINE.match(line):
                    file.write(raw)
                else:
                    with contextlib.suppress(OSError):
                        print(line[len(next(filter(line.startswith, prefixes), "")) :], end="", flush=True)
