"""A second Ctrl-C to the launcher of several machines (real ``ftdist node``; stand-ins for ssh and torchrun)."""

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Callable

import pytest

from ftdist.base.errors import EXIT_PREEMPTED
from ftdist.config.frozen import dump_config, load_config
from ftdist.config.launch import Device, LaunchKind
from tests.helpers.ranks import free_port
from tests.unit.launch.run_tools import make_run

TORCHRUN = """
import os, socket, sys, time
from pathlib import Path
port = int(sys.argv[sys.argv.index("--rdzv-endpoint") + 1].rsplit(":", 1)[1])
server = socket.create_server(("127.0.0.1", port)) if "is_host=1" in " ".join(sys.argv) else None
(Path(sys.argv[sys.argv.index("ftdist.train.main") + 1]) / f"started-{os.getpid()}").touch()
time.sleep(60)  # its ranks do not see the request to stop
"""
LAUNCHER = """
import sys
from ftdist.base.errors import FtdistError
from ftdist.config.frozen import load_config
from ftdist.launch.backends.nodes import NodesBackend
from ftdist.run.rundir import RunDir
run = RunDir(sys.argv[1])
try:
    sys.exit(NodesBackend().start(load_config(run.config), run))
except FtdistError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(error.exit_code)
"""


def wait_until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 40
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("over_ssh", [True, False], ids=["over ssh", "by hand"])
def test_a_second_ctrl_c_leaves_a_run_that_can_be_resumed(
    over_ssh: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "standin" / "torch" / "distributed"
    package.mkdir(parents=True)
    for name, text in (("../__init__.py", ""), ("__init__.py", ""), ("run.py", TORCHRUN)):
        (package / name).write_text(text)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'standin'}:{':'.join(sys.path)}")
    run = make_run(tmp_path / "run", state="frozen", attempt=0)
    config = load_config(run.config)
    launch = config.launch
    launch.kind, launch.device, launch.nproc_per_node = LaunchKind.nodes, Device.cpu, 1
    launch.nodes.address, launch.nodes.port = "127.0.0.1", free_port()
    if over_ssh:
        launch.nnodes, launch.nodes.hosts = 2, ["first", "second"]
        ssh = tmp_path / "ssh"
        ssh.write_text('#!/bin/bash\nexec bash -c "${@: -1}"\n')  # sshd gives the last word to a shell, too
        ssh.chmod(0o755)
        launch.nodes.ssh = str(ssh)
    run.config.write_text(dump_config(config))
    launcher = subprocess.Popen([sys.executable, "-c", LAUNCHER, str(run.path)], text=True, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, start_new_session=True)  # fmt: skip
    wait_until(lambda: len(list(run.path.glob("started-*"))) == launch.nnodes)
    launcher.send_signal(signal.SIGINT)
    wait_until(run.preempt.exists)
    launcher.send_signal(signal.SIGINT)
    _, errors = launcher.communicate(timeout=40)
    assert launcher.returncode == EXIT_PREEMPTED and "error" not in errors, errors
    status = run.read_status()
    assert (status["state"], status["exit_reason"]) == ("preempted", "ended immediately, before it could save")
