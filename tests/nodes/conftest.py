"""An sshd for one test, and the losses of a run on this machine."""

import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import List

import pytest

from tests.helpers.ranks import free_port
from tests.helpers.runs import finished_run
from tests.nodes.settings import SHORT, losses


@pytest.fixture(scope="session")
def local_losses() -> List[float]:
    """Losses of two ranks that the local launcher starts."""
    return losses(finished_run(*SHORT, "launch=local", "launch.nproc_per_node=2"))


@pytest.fixture
def ssh(tmp_path: Path) -> Iterator[str]:
    """Return an ssh command that reaches an sshd which only this test uses."""
    if not (shutil.which("ssh") and Path("/usr/sbin/sshd").exists()) or os.geteuid():
        pytest.skip("needs root, ssh and sshd: apt install openssh-server")
    separation = Path("/run/sshd")
    made = not separation.exists()
    separation.mkdir(exist_ok=True)
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name)], check=True)
    port = free_port()
    config = tmp_path / "sshd_config"
    config.write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {tmp_path}/host\nAuthorizedKeysFile {tmp_path}/user.pub\n"
        f"PidFile none\nStrictModes no\nUsePAM no\nPermitRootLogin yes\n"
    )
    with subprocess.Popen(["/usr/sbin/sshd", "-D", "-e", "-f", str(config)], stderr=subprocess.DEVNULL) as daemon:
        try:
            known = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"
            command = f"ssh -p {port} -F none -i {tmp_path}/user {known}"
            deadline = time.monotonic() + 20
            while subprocess.run([*shlex.split(command), "127.0.0.1", "true"], capture_output=True).returncode:
                assert time.monotonic() < deadline, "sshd"
                time.sleep(0.1)
            yield command
        finally:
            daemon.terminate()
            daemon.wait()
            if made:
                separation.rmdir()
