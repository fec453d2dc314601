"""Start a run on several machines without a scheduler: ``ftdist node`` on each, started by hand or over ssh.

All machines see the run directory on a shared file system. The ranks meet at a port of the first machine.
"""

import contextlib
import platform
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import List, Optional, TextIO

from ftdist.base.counts import count
from ftdist.base.errors import EXIT_DONE, EXIT_FAILED, EXIT_PREEMPTED, ConfigError, LaunchError
from ftdist.base.shell import shell_words
from ftdist.config.launch import LaunchKind
from ftdist.config.schema import RunConfig
from ftdist.launch.attempt import failure, lifecycle, signals, torchrun
from ftdist.launch.attempt.command import LaunchPlan, Rendezvous, rank_program, ranks_env, torchrun_command
from ftdist.launch.attempt.machine import check_torch
from ftdist.launch.backends.foreground import ForegroundBackend, resolve_device, resolve_ranks_per_node
from ftdist.launch.backends.rendezvous import address, check_port, wait_for_port
from ftdist.launch.backends.slurm.ownership import owned
from ftdist.run.rundir import RunDir

SSH_FAILED = 255
"""Exit code of ssh if it did not run the command."""
GRACE_S = 20.0
"""Seconds that the other machines have to report how they ended, after one has failed."""


class NodesBackend(ForegroundBackend):
    """torchrun on each machine. The user starts it there, or ``ftdist train`` does over ssh."""

    kind = LaunchKind.nodes

    def resolve(self, config: RunConfig) -> None:
        launch = config.launch
        gpus = resolve_device(launch)
        if launch.nodes.hosts and len(launch.nodes.hosts) != launch.nnodes:
            raise ConfigError(f"launch.nnodes={launch.nnodes} contradicts launch.nodes.hosts, which has "
                              f"{count(len(launch.nodes.hosts), 'host')}", "one host for each machine",
                              f"launch.nnodes={len(launch.nodes.hosts)}")  # fmt: skip
        resolve_ranks_per_node(launch, gpus)

    def dry_run(self, config: RunConfig, run: RunDir, changed: bool = False) -> str:
        lines, attempt = [], lifecycle.next_attempt(run)
        for rank in range(config.launch.nnodes):
            over_ssh = bool(config.launch.nodes.hosts)
            command = ssh_command(config, run, rank, attempt) if over_ssh else node_command(run, rank, attempt)
            lines += [f"# {machine_name(config, rank)}:", shell_words(command)]
        return "\n".join(lines)

    def start(self, config: RunConfig, run: RunDir) -> int:
        self.check_start(config)
        with owned(run):
            attempt = lifecycle.begin(run, self.kind)
            if config.launch.nodes.hosts:
                with lifecycle.failures_recorded(run):
                    return _run_over_ssh(config, run, attempt)
            for rank in range(1, config.launch.nnodes):
                command = shell_words(node_command(run, rank, attempt))
                print(f"start on {machine_name(config, rank)}:\n  {command}", flush=True)
            return run_node(config, run, 0, attempt, begun=True)


def machine_name(config: RunConfig, rank: int) -> str:
    """Return the name of a machine for messages."""
    hosts = config.launch.nodes.hosts
    return hosts[rank] if hosts else f"machine {rank}"


# ---- the commands ------------------------------------------------------------------------------------------------


def node_command(run: RunDir, rank: int, attempt: int) -> List[str]:
    """Return the command that starts the ranks of one machine, to be run on that machine."""
    return [sys.executable, "-m", "ftdist", "node", str(run.path), "--rank", str(rank), "--attempt", str(attempt)]


def ssh_command(config: RunConfig, run: RunDir, rank: int, attempt: int) -> List[str]:
    """Return the command that runs ``node_command`` on another machine over ssh.

    The remote side stops when its standard input closes, even if this side was killed.
    """
    command = shlex.join(["env", "PYTHONSAFEPATH=1", *node_command(run, rank, attempt), "--watch"])
    remote = f"cd {shlex.quote(str(Path.cwd()))} && exec {command}"
    options = ["-o", "BatchMode=yes", "-o", f"ConnectTimeout={min(20, config.launch.nodes.join_timeout_s)}"]
    return [*shlex.split(config.launch.nodes.ssh), *options, config.launch.nodes.hosts[rank], remote]


def plan_node(config: RunConfig, run: RunDir, rank: int, attempt: int) -> LaunchPlan:
    """Plan to start the ranks of one machine through torchrun."""
    nodes = config.launch.nodes
    rendezvous = Rendezvous(
        endpoint=f"{address(config)}:{nodes.port}", id=f"{config.track.run_id}.{attempt}",
        is_host=str(int(rank == 0)), join_timeout_s=nodes.join_timeout_s,
    )  # fmt: skip
    argv = torchrun_command(config.launch, rank_program(str(run.path), attempt), rendezvous)
    return LaunchPlan(argv, ranks_env(config))


# ---- one machine ---------------------------------------------------------------------------------------------------


def run_node(config: RunConfig, run: RunDir, rank: int, attempt: int, begun: bool = False) -> int:
    """Run the ranks of one machine and wait for them. Returns the exit code.

    Args:
        rank: index of this machine; the first machine is 0.
        begun: whether a launcher has begun the attempt. If not, the first machine begins it.

    Raises:
        ConfigError: torch of this machine was built for CPU, and the run wants GPUs.
        LaunchError: the machines did not find each other, two machines have the same index, or a rank failed. The
            message names the machine.
    """
    check_torch(config.launch)  # the environment of this machine may be another one than the launcher's
    if rank:
        return _run_other_machine(config, run, rank, attempt)
    with owned(run) if not begun else contextlib.nullcontext():
        if not begun:
            lifecycle.begin(run, LaunchKind.nodes, attempt)
        with lifecycle.failures_recorded(run):
            return _run_first_machine(config, run, attempt)


def _run_first_machine(config: RunConfig, run: RunDir, attempt: int) -> int:
    check_port(config)
    for path in run.logs.glob(f"node-*.attempt-{attempt}.joined"):
        path.unlink()
    code = _run_ranks(config, run, 0, attempt)
    if code and not lifecycle.ended_at_once(run, code):
        _check_joined(config, run, attempt)
    return lifecycle.conclude(run, attempt, code, _logs(run, attempt))


def _run_other_machine(config: RunConfig, run: RunDir, rank: int, attempt: int) -> int:
    run.logs.mkdir(exist_ok=True)
    wait_for_port(config, machine_name(config, rank))
    code = _run_ranks(config, run, rank, attempt)
    if lifecycle.ended_at_once(run, code):
        return EXIT_PREEMPTED
    state = run.read_status().get("state")
    if code == 0 and state in lifecycle.STATE_EXIT:
        return lifecycle.STATE_EXIT[state]
    _check_joined(config, run, attempt)
    return code or EXIT_FAILED


def _run_ranks(config: RunConfig, run: RunDir, rank: int, attempt: int) -> int:
    _join(config, run, rank, attempt)
    return torchrun.run_ranks(plan_node(config, run, rank, attempt), _log(run, rank, attempt), run.preempt)


def _log(run: RunDir, rank: int, attempt: int) -> Path:
    return run.logs / f"node-{rank}.attempt-{attempt}.log"


def _logs(run: RunDir, attempt: int) -> List[Path]:
    return sorted(run.logs.glob(f"node-*.attempt-{attempt}.log"))


def _joined(run: RunDir, rank: int, attempt: int) -> Path:
    """Return the file that a machine makes when it joins. It holds the machine's host name."""
    return run.logs / f"node-{rank}.attempt-{attempt}.joined"


def _join(config: RunConfig, run: RunDir, rank: int, attempt: int) -> None:
    """Claim the index of a machine.

    Raises:
        LaunchError: another machine has claimed it. This machine would wait for ranks that never join.
    """
    mark = _joined(run, rank, attempt)
    try:
        with mark.open("x") as file:
            file.write(platform.node())
    except FileExistsError:
        raise LaunchError(
            f"machine {rank} has already been started, on host {mark.read_text()}",
            f"a different --rank (0 to {config.launch.nnodes - 1}) on each machine",
            "pass another --rank, or set launch.nnodes=N for more machines. To restart the run, start --rank 0 first",
        ) from None


def _check_joined(config: RunConfig, run: RunDir, attempt: int) -> None:
    """Check that all machines have joined.

    Raises:
        LaunchError: a machine has not joined. The message names it.
    """
    missing = [rank for rank in range(config.launch.nnodes) if not _joined(run, rank, attempt).is_file()]
    if missing:
        names = ", ".join(machine_name(config, rank) for rank in missing)
        raise LaunchError(
            f"{names} did not join within {config.launch.nodes.join_timeout_s} s",
            f"`ftdist node` running on all {config.launch.nnodes} machines, with a run directory that all of them can "
            "read",
            "run the commands that `ftdist train … --dry-run` prints, one on each machine",
        )


# ---- all machines, over ssh ----------------------------------------------------------------------------------------


def _run_over_ssh(config: RunConfig, run: RunDir, attempt: int) -> int:
    logs = [run.logs / f"ssh-{rank}.attempt-{attempt}.log" for rank in range(config.launch.nnodes)]
    children: List[subprocess.Popen[bytes]] = []
    ended_at_once = False

    def end_now() -> None:
        nonlocal ended_at_once
        ended_at_once = True
        _end(children)

    with contextlib.ExitStack() as stack:
        stack.callback(_end, children)
        for rank, log in enumerate(logs):
            errors = stack.enter_context(log.open("wb"))
            out: Optional[TextIO | int] = None if rank == 0 else subprocess.DEVNULL
            command = ssh_command(config, run, rank, attempt)
            try:
                children.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=out, stderr=errors,
                                                 start_new_session=True))  # fmt: skip
            except OSError as missing:
                raise LaunchError(f"cannot run {command[0]}: {missing.strerror}", "a command that connects to a host",
                                  "set launch.nodes.ssh=COMMAND") from missing  # fmt: skip
        with signals.touch_on_signals(run.preempt, end_now):
            failed = _first_failure(children)
    if ended_at_once:
        return lifecycle.conclude(run, attempt, -signal.SIGKILL, _logs(run, attempt))
    if failed is None:
        return lifecycle.conclude(run, attempt, EXIT_DONE, _logs(run, attempt))
    raise _machine_error(config, failed, children[failed].returncode, logs[failed])


def _machine_error(config: RunConfig, rank: int, code: int, log: Path) -> LaunchError:
    """Return the error of a machine whose ssh ended with ``code``. The log of ssh tells the reason."""
    printed = log.read_text(errors="replace").strip().splitlines()
    host = machine_name(config, rank)
    if code == SSH_FAILED:
        return LaunchError(
            f"{host} cannot be reached: {printed[-1] if printed else 'ssh failed'}",
            f"a host that `{config.launch.nodes.ssh} {host} true` reaches without a password",
            "make this command work, then resume the run",
        )
    text = "\n".join(printed[-failure.LAST_LINES :]).removeprefix("error: ")
    # The first machine explains a failure of any rank, and names the machine of that rank.
    where = "" if re.match(r"(a )?rank\b", text) else f"{host}: "
    error = LaunchError(f"{where}{text or f'ended with exit code {code}'}")
    error.exit_code = code if code > 0 else EXIT_FAILED
    return error


def _first_failure(children: "List[subprocess.Popen[bytes]]") -> Optional[int]:
    """Wait for all machines. Return the one that failed first, or None. The others then have GRACE_S to end."""
    ended_well = (EXIT_DONE, EXIT_PREEMPTED)
    failed, deadline = None, float("inf")
    while None in [child.poll() for child in children] and time.monotonic() < deadline:
        for rank, child in enumerate(children):
            if failed is None and child.returncode not in (None, *ended_well):
                failed, deadline = rank, time.monotonic() + (0 if child.returncode == SSH_FAILED else GRACE_S)
        time.sleep(0.1)
    # The first machine explains a failure of the ranks best, so its error is preferred.
    if failed is not None and children[0].returncode not in (None, 0) and children[failed].returncode != SSH_FAILED:
        return 0
    if failed is not None:
        return failed
    return next((rank for rank, child in enumerate(children) if child.returncode not in ended_well), None)


def _end(children: "List[subprocess.Popen[bytes]]") -> None:
    """Close the standard input of the remote sides, which stops them, and wait for ssh."""
    for child in children:
        if child.stdin is not None:
            with contextlib.suppress(OSError):
                child.stdin.close()
    for child in children:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(timeout=GRACE_S)
        if child.poll() is None:
            child.kill()
            child.wait()
