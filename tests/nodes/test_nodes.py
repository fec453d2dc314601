"""Several machines without a scheduler, emulated on one machine: two agents and a private sshd."""

import shlex
import signal
import subprocess
import time
from pathlib import Path
from typing import List

import pytest

from ftdist.run.rundir import RunDir
from tests.helpers.cli import finish, processes_of, start, wait_until_gone
from tests.helpers.ranks import free_port
from tests.helpers.runs import wait_for_step
from tests.nodes.settings import LONG, SHORT, losses

pytestmark = pytest.mark.timeout(900)

RUN = (*SHORT, "launch=nodes", "launch.nproc_per_node=1", "launch.nnodes=2")


def nodes(run: RunDir, *more: str) -> List[str]:
    return [*RUN, f"run_dir={run.path}", f"launch.nodes.port={free_port()}", *more]


def test_the_commands_of_a_dry_run_work(tmp_path: Path, local_losses: List[float]) -> None:
    run = RunDir(tmp_path / "run")
    output = finish(start("train", "--dry-run", *nodes(run, "launch.nodes.address=127.0.0.1")))
    commands = [line for line in output.splitlines() if " ftdist node " in line]
    assert len(commands) == 2 and "# machine 1:" in output
    started = [subprocess.Popen(shlex.split(command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
               for command in reversed(commands)]  # fmt: skip
    for process in started:
        finish(process)
    assert losses(run) == local_losses


def test_a_run_over_ssh(ssh: str, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    hosts = f"launch.nodes.ssh='{ssh}'", "launch.nodes.hosts=[127.0.0.1,localhost]"
    output = finish(start("train", *nodes(run, *hosts)))
    assert "step 6/6" in output and run.read_status()["state"] == "done"


@pytest.mark.slow
def test_ctrl_c_stops_a_run_over_ssh(ssh: str, tmp_path: Path) -> None:
    """Ctrl-C saves and stops, resume continues, and the ranks of a killed launcher end with it."""
    run = RunDir(tmp_path / "run")
    hosts = f"launch.nodes.ssh='{ssh}'", "launch.nodes.hosts=[127.0.0.1,localhost]"
    launcher = start("train", *nodes(run, *hosts, *LONG))
    wait_for_step(run, 3)
    assert len(processes_of(run, anywhere=True)) >= 3, "the launcher and two ranks"
    launcher.send_signal(signal.SIGINT)
    assert "ftdist resume" in finish(launcher, 75)
    stopped = run.read_status()["step"]
    assert run.find_checkpoint("last").name.endswith(f"{stopped}")
    again = start("resume", str(run.path))
    wait_for_step(run, stopped + 3)
    again.kill()
    again.communicate()
    wait_until_gone(run, anywhere=True)


def test_an_unreachable_machine_is_named(ssh: str, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    hosts = f"launch.nodes.ssh='{ssh}'", "launch.nodes.hosts=[127.0.0.1,127.0.0.2]"
    started = time.monotonic()
    output = finish(start("train", *nodes(run, *hosts)), 1)
    assert "127.0.0.2 cannot be reached" in output and time.monotonic() - started < 60
    assert run.read_status()["state"] == "failed"


def test_a_machine_that_does_not_join_is_named(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    output = finish(start("train", *nodes(run, "launch.nodes.join_timeout_s=8", "launch.nodes.address=127.0.0.1")), 1)
    assert "machine 1 did not join within 8 s" in output
    assert "Traceback" not in output


def test_an_occupied_port_is_named(tmp_path: Path) -> None:
    import socket

    run = RunDir(tmp_path / "run")
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        output = finish(start("train", *nodes(run), f"launch.nodes.port={port}"), 1)
    assert f"port {port} cannot be used" in output and f"launch.nodes.port={port + 1}" in output


def test_an_absent_first_machine_is_named(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    finish(start("train", "--dry-run", *nodes(run, "launch.nodes.join_timeout_s=2", "launch.nodes.address=127.0.0.1")))
    output = finish(start("node", str(run.path), "--rank", "1"), 1)
    assert "(machine 1) cannot reach 127.0.0.1:" in output


def test_a_wrong_number_of_machines_is_refused(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    output = finish(start("train", *nodes(run, "launch.nodes.hosts=[a,b,c]")), 2)
    assert "launch.nnodes=2 contradicts launch.nodes.hosts, which has 3 hosts" in output and not run.path.exists()
    finish(start("train", "--dry-run", *nodes(run, "launch.nodes.hosts=[a,b]")))
    assert "--rank 2, but the run has launch.nnodes=2" in finish(start("node", str(run.path), "--rank", "2"), 2)
