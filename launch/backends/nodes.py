"""Several machines without a scheduler: one ``ftdist node`` on each, started by hand or over ssh.

All see the run directory on a shared file system. The first machine leads: the others reach it at address:port.
"""

import contextlib
import os
import platform
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import List, Optional, TextIO

from ftdist.base.errors import EXIT_FAILED, ConfigError, LaunchError
from ftdist.config.schema import RunConfig
from ftdist.launch.attempt import failure, lifecycle, process
from ftdist.launch.attempt.command import LaunchPlan, Rendezvous, rank_program, ranks_env, torchrun_command
from ftdist.run.rundir import RunDir

UNREACHABLE = 255
"""ssh's own exit code."""
GRACE_S = 20.0
"""How long the other machines may take to say how they ended, once one has failed."""


def address(config: RunConfig) -> str:
    """Name of the first machine as the others reach it."""
    nodes = config.launch.nodes
    return nodes.address or (nodes.hosts[0].rsplit("@", 1)[-1] if nodes.hosts else platform.node())


def name_of(config: RunConfig, rank: int) -> str:
    hosts = config.launch.nodes.hosts
    return hosts[rank] if hosts else f"machine {rank}"


def check_nodes(config: RunConfig) -> None:
    """
    Raises:
        ConfigError: hosts and nnodes contradict each other.
    """
    launch = config.launch
    if launch.nodes.hosts and len(launch.nodes.hosts) != launch.nnodes:
        raise ConfigError(f"launch.nnodes={launch.nnodes} with {len(launch.nodes.hosts)} launch.nodes.hosts",
                          "one host for each machine", f"launch.nnodes={len(launch.nodes.hosts)}")  # fmt: skip


def node_command(run: RunDir, rank: int, attempt: int) -> List[str]:
    """What starts one machine's ranks, on that machine."""
    return [sys.executable, "-m", "ftdist", "node", str(run.path), "--rank", str(rank), "--attempt", str(attempt)]


def ssh_command(config: RunConfig, run: RunDir, rank: int, attempt: int) -> List[str]:
    """The same over ssh. The far end stops when its standard input closes, however this end went."""
    command = shlex.join(["env", "PYTHONSAFEPATH=1", *node_command(run, rank, attempt), "--watch"])
    remote = f"cd {shlex.quote(str(Path.cwd()))} && exec {command}"
    options = ["-o", "BatchMode=yes", "-o", f"ConnectTimeout={min(20, config.launch.nodes.join_timeout_s)}"]
    return [*shlex.split(config.launch.nodes.ssh), *options, config.launch.nodes.hosts[rank], remote]


def dry_run(config: RunConfig, run: RunDir) -> str:
    """The command for each machine."""
    lines = []
    for rank in range(config.launch.nnodes):
        command = ssh_command(config, run, rank, 0) if config.launch.nodes.hosts else node_command(run, rank, 0)
        lines += [f"# {name_of(config, rank)}:", shlex.join(command)]
    return "\n".join(lines)


def plan_node(config: RunConfig, run: RunDir, rank: int, attempt: int) -> LaunchPlan:
    """How torchrun starts the ranks of one machine. Pure."""
    nodes = config.launch.nodes
    rendezvous = Rendezvous(
        endpoint=f"{address(config)}:{nodes.port}", id=f"{config.track.run_id}.{attempt}",
        is_host=str(int(rank == 0)), join_timeout_s=nodes.join_timeout_s,
    )  # fmt: skip
    argv = torchrun_command(config.launch, rank_program(str(run.path), attempt), rendezvous)
    return LaunchPlan(argv, ranks_env(config))


def run_node(config: RunConfig, run: RunDir, rank: int, attempt: int) -> int:
    """
    Raises:
        LaunchError: the machines did not find together, or are too many, or a rank failed; names the machine.
    """
    run.logs.mkdir(exist_ok=True)
    if rank == 0:
        check_port(config)
        run.preempt.unlink(missing_ok=True)
        lifecycle.clear_errors(run, attempt)
        lifecycle.clear_rests(run)
        for path in run.logs.glob(f"node-*.attempt-{attempt}.joined"):
            path.unlink()
    else:
        _wait_for_first(config, rank)
    _join(config, run, rank, attempt)
    log = run.logs / f"node-{rank}.attempt-{attempt}.log"
    code = process.start(plan_node(config, run, rank, attempt), log, run.preempt)
    state = run.read_status().get("state")
    if code == 0 and state in lifecycle.STATE_EXIT:
        return lifecycle.STATE_EXIT[state]
    if missing := [r for r in range(config.launch.nnodes) if not _joined(run, r, attempt).is_file()]:
        names = ", ".join(name_of(config, r) for r in missing)
        raise LaunchError(
            f"{names} did not join within {config.launch.nodes.join_timeout_s} s",
            f"launch.nnodes={config.launch.nnodes} machines, each with its ftdist node command and this run directory",
            "the commands: ftdist train … --dry-run",
        )
    if rank:
        return code or EXIT_FAILED
    attempt = max(attempt, int(run.read_status().get("attempt", 0)))
    raise failure.explain_failure(run, attempt, sorted(run.logs.glob(f"node-*.attempt-{attempt}.log")), code)


def _joined(run: RunDir, rank: int, attempt: int) -> Path:
    return run.logs / f"node-{rank}.attempt-{attempt}.joined"


def _join(config: RunConfig, run: RunDir, rank: int, attempt: int) -> None:
    """
    Raises:
        LaunchError: another machine has this one's number. It would wait for ranks that never come.
    """
    mark = _joined(run, rank, attempt)
    try:
        with mark.open("x") as file:
            file.write(platform.node())
    except FileExistsError:
        raise LaunchError(
            f"{mark.read_text()} has joined already as {name_of(config, rank)}",
            f"--rank 0 to {config.launch.nnodes - 1}, each on one machine",
            "more machines: launch.nnodes=N. To start again: on the first machine first, --rank 0",
        ) from None


def check_port(config: RunConfig) -> None:
    """
    Raises:
        LaunchError: the port on which the ranks are to meet is taken.
    """
    port = config.launch.nodes.port
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise LaunchError(f"{platform.node()}: port {port} cannot be used: {error.strerror}", "a free port",
                              f"launch.nodes.port={port + 1}") from error  # fmt: skip


def _wait_for_first(config: RunConfig, rank: int) -> None:
    place = (address(config), config.launch.nodes.port)
    deadline, reason = time.monotonic() + config.launch.nodes.join_timeout_s, ""
    while time.monotonic() < deadline:
        try:
            socket.create_connection(place, timeout=5).close()
            return
        except OSError as error:
            reason = str(error.strerror or error)
        time.sleep(0.5)
    raise LaunchError(f"{platform.node()} ({name_of(config, rank)}) cannot reach {place[0]}:{place[1]}: {reason}",
                      "the first machine, with its ranks started and the port open",
                      "launch.nodes.address=NAME, launch.nodes.port=PORT")  # fmt: skip


def launch_nodes(config: RunConfig, run: RunDir) -> int:
    """Start the run on all machines and wait. Returns the exit code.

    Raises:
        LaunchError: a machine cannot be reached or its ranks failed; names it.
    """
    attempt = lifecycle.next_attempt(run)
    run.preempt.unlink(missing_ok=True)
    run.write_status(state="starting", attempt=attempt, pid=os.getpid(), host=platform.node())
    try:
        if config.launch.nodes.hosts:
            return _over_ssh(config, run, attempt)
        for rank in range(1, config.launch.nnodes):
            print(f"start on {name_of(config, rank)}:\n  {shlex.join(node_command(run, rank, attempt))}", flush=True)
        return run_node(config, run, 0, attempt)
    except LaunchError as error:
        if run.read_status().get("state") not in ("failed", *lifecycle.STATE_EXIT):
            run.write_status(state="failed", exit_reason=error.found.splitlines()[0])
        raise


def _over_ssh(config: RunConfig, run: RunDir, attempt: int) -> int:
    run.logs.mkdir(exist_ok=True)
    logs = [run.logs / f"ssh-{rank}.attempt-{attempt}.log" for rank in range(config.launch.nnodes)]
    children: List[subprocess.Popen[bytes]] = []
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
                raise LaunchError(f"{command[0]}: {missing.strerror}", "the command that reaches a host",
                                  "launch.nodes.ssh=COMMAND") from missing  # fmt: skip
        with process.stop_on_signals(lambda: _end(children), run.preempt):
            failed = _first_failure(children)
    state = run.read_status().get("state")
    if failed is None and state in lifecycle.STATE_EXIT:
        return lifecycle.STATE_EXIT[state]
    rank = failed or 0
    said = logs[rank].read_text(errors="replace").strip().splitlines()
    code = children[rank].returncode
    host = name_of(config, rank)
    if code == UNREACHABLE:
        raise LaunchError(f"{host} cannot be reached: {said[-1] if said else 'ssh failed'}",
                          f"`{config.launch.nodes.ssh} {host} true` works without a password")  # fmt: skip
    text = "\n".join(said[-failure.LAST_LINES :]).removeprefix("error: ")
    error = LaunchError(f"{host}: {text or f'ended with exit code {code}'}")
    error.exit_code = code if code > 0 else EXIT_FAILED
    raise error


def _first_failure(children: "List[subprocess.Popen[bytes]]") -> Optional[int]:
    """Wait for all; the machine that failed first, where one did. The others then have GRACE_S to end."""
    failed, deadline = None, float("inf")
    while None in [child.poll() for child in children] and time.monotonic() < deadline:
        for rank, child in enumerate(children):
            if failed is None and child.returncode not in (None, 0, 75):
                failed, deadline = rank, time.monotonic() + (0 if child.returncode == UNREACHABLE else GRACE_S)
        time.sleep(0.1)
    # The first machine explains a failure of the ranks best; another one only where the first has nothing to say.
    if failed is not None and children[0].returncode not in (None, 0) and children[failed].returncode != UNREACHABLE:
        return 0
    return (
        failed if failed is not None else next((r for r, c in enumerate(children) if c.returncode not in (0, 75)), None)
    )


def _end(children: "List[subprocess.Popen[bytes]]") -> None:
    """Close the far ends' standard input, which stops them, and wait for ssh."""
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
