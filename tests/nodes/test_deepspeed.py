"""DeepSpeed's launcher with two names of this machine in the hostfile: pdsh with a private sshd, and mpirun."""

import os
import re
import shutil
import signal
from pathlib import Path
from typing import List

import pytest

from ftdist.base.errors import ConfigError
from ftdist.launch.backends.hostfile import read_hostfile
from ftdist.run.rundir import RunDir
from tests.helpers.cli import finish, processes_of, start, wait_until_gone
from tests.helpers.ranks import free_port
from tests.helpers.runs import wait_for_step
from tests.nodes.settings import LONG, SHORT, losses

pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def one_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> List[str]:
    """Return overrides that start two ranks with mpirun under one name: it refuses two names of one machine."""
    if shutil.which("mpirun") is None:
        pytest.skip("needs mpirun: apt install openmpi-bin")
    (tmp_path / "hosts").write_text("127.0.0.1 slots=2\n")
    for name in ("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"):
        monkeypatch.setenv(name, "1")
    return ["launch=deepspeed", f"launch.deepspeed.hostfile={tmp_path / 'hosts'}", "launch.deepspeed.runner=openmpi",
            f"launch.nodes.port={free_port()}"]  # fmt: skip


@pytest.fixture(params=["hosts", pytest.param("one_host", marks=pytest.mark.slow)])
def machines(request: pytest.FixtureRequest) -> List[str]:
    return request.getfixturevalue(request.param)


@pytest.fixture
def hosts(ssh: str, tmp_path: Path) -> List[str]:
    """Return overrides for two machines, both of which are this one."""
    if shutil.which("pdsh") is None:
        pytest.skip("needs pdsh: apt install pdsh")
    (tmp_path / "hosts").write_text("# two names of one machine\n127.0.0.1 slots=1\nlocalhost  slots=1\n")
    return ["launch=deepspeed", f"launch.deepspeed.hostfile={tmp_path / 'hosts'}", f"launch.nodes.port={free_port()}",
            f"launch.nodes.ssh='{ssh}'"]  # fmt: skip


def test_deepspeeds_launcher_gives_the_losses_of_a_local_run(
    machines: List[str], tmp_path: Path, local_losses: List[float]
) -> None:
    run = RunDir(tmp_path / "run")
    output = finish(
        start("train", *SHORT, *machines, "launch.nproc_per_node=null", f"run_dir={run.path}", cwd=tmp_path)
    )
    assert "\nstep 6/6" in output and "[INFO]" not in output, output
    places = re.findall(r"^run +(.+)$", output, re.MULTILINE)
    assert places == ["run"] * 2, output  # before the ranks and after them
    assert losses(run) == local_losses
    assert run.read_status()["state"] == "done" and run.log_file(1, 0).is_file()
    assert not processes_of(run, anywhere=True)


@pytest.mark.slow
def test_ctrl_c_stops_and_resume_continues(machines: List[str], tmp_path: Path) -> None:
    """Ctrl-C saves and stops, resume continues, and the ranks of a killed launcher end with it."""
    run = RunDir(tmp_path / "run")
    launcher = start("train", *SHORT, *machines, *LONG, "launch.nproc_per_node=null", f"run_dir={run.path}")
    wait_for_step(run, 3)
    assert len(processes_of(run, anywhere=True)) >= 3, "the launcher and two ranks"
    launcher.send_signal(signal.SIGINT)
    assert "ftdist resume" in finish(launcher, 75)
    stopped = run.read_status()["step"]
    assert run.find_checkpoint("last").name.endswith(f"{stopped}")
    wait_until_gone(run, anywhere=True)
    again = start("resume", str(run.path))
    wait_for_step(run, stopped + 3)
    again.kill()
    again.communicate()
    wait_until_gone(run, anywhere=True)
    assert run.read_status()["state"] == "preempted"


@pytest.mark.slow
def test_cancel_now_ends_all_processes(machines: List[str], tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    launcher = start("train", *SHORT, *machines, *LONG, "launch.nproc_per_node=null", f"run_dir={run.path}")
    wait_for_step(run, 3)
    assert len(processes_of(run, anywhere=True)) >= 3, "the launcher and two ranks"
    finish(start("cancel", "--now", str(run.path)))
    finish(launcher, 1)
    wait_until_gone(run, anywhere=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("machines", "says"),
    [("hosts", "a rank on localhost was killed by SIGKILL"), ("one_host", "a rank on @ was killed by SIGKILL")],
    indirect=["machines"],
)
def test_a_killed_rank_is_named_by_its_machine(machines: List[str], says: str, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    launcher = start("train", *SHORT, *machines, *LONG, "launch.nproc_per_node=null", f"run_dir={run.path}")
    wait_for_step(run, 3)
    assert len(processes_of(run, anywhere=True)) >= 3, "the launcher and two ranks"
    kill_a_rank(run, "1")
    output = finish(launcher, 1)
    assert says.replace("@", os.uname().nodename) in output, output
    wait_until_gone(run, anywhere=True)


def kill_a_rank(run: RunDir, rank: str) -> None:
    import psutil

    for process in psutil.process_iter():
        try:
            numbers = [process.environ().get(name) for name in ("RANK", "OMPI_COMM_WORLD_RANK")]
            if str(run.path) in process.cmdline() and rank in numbers:
                process.kill()
        except psutil.Error:
            continue


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("one slots=1\none slots=1\n", "'one slots=1'"),
        ("one\n", "'one'"),
        ("one slots=1\ntwo slots=2\n", "different numbers of slots: 1, 2"),
        ("a;b slots=1\n", "'a;b slots=1'"),
        ("-oProxyCommand=touch slots=1\n", "'-oProxyCommand"),
        ("one slots=0\n", "at least 1 rank"),
        ("# none\n", "names no machine"),
    ],
)
def test_a_wrong_hostfile_is_refused(text: str, says: str, tmp_path: Path) -> None:
    from ftdist.config.schema import RunConfig
    from ftdist.launch.backends.hostfile import resolve_hosts

    config = RunConfig(run_dir="/runs/a")
    config.launch.deepspeed.hostfile = str(tmp_path / "hosts")
    (tmp_path / "hosts").write_text(text)
    with pytest.raises(ConfigError) as error:
        resolve_hosts(config)
    assert re.search(says, str(error.value))
    config = RunConfig(run_dir="/runs/a")
    config.launch.deepspeed.hostfile = str(tmp_path / "hosts")
    (tmp_path / "hosts").write_text("one slots=2 # comment\n\ntwo slots=2\n")
    assert read_hostfile(tmp_path / "hosts") == {"one": 2, "two": 2}
    resolve_hosts(config)
    assert (config.launch.nnodes, config.launch.nproc_per_node, config.launch.nodes.hosts) == (2, 2, ["one", "two"])
