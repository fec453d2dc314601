"""Commands for other machines: no value is taken for an option of ssh or run by a shell (real bash, no sshd)."""

import os
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, List

import pytest

from ftdist.base.errors import EXIT_PREEMPTED, ConfigError, LaunchError
from ftdist.config.checks import check_config
from ftdist.config.launch import Device, LaunchKind, Runner, check_launch
from ftdist.config.schema import RunConfig
from ftdist.launch.attempt.command import LaunchPlan
from ftdist.launch.attempt.lifecycle import next_attempt
from ftdist.launch.backends import deepspeed, nodes
from ftdist.run.rundir import RunDir
from tests.helpers.ranks import free_port

HOSTILE = ["a'b", 'a"b', "$(touch PWNED)", "`touch PWNED`", "; touch PWNED #", "a\\", "ünï 東京 🚀", "-x", "${HOME}",
           "a b", "& touch PWNED &", "| touch PWNED", "*", "~", "!x"]  # fmt: skip


def on_nodes(*hosts: str, **changes: Any) -> RunConfig:
    config = RunConfig()
    launch = config.launch
    launch.kind, launch.device, launch.nproc_per_node, launch.nnodes = LaunchKind.nodes, Device.cpu, 1, len(hosts) or 2
    launch.nodes.hosts = list(hosts)
    for key, value in changes.items():
        setattr(launch.nodes, key, value)
    return config


NO_MACHINE = ["-oProxyCommand=touch PWNED", "-J evil", "--", "a b", "a;touch PWNED", "$(touch PWNED)", "`touch PWNED`",
              "a\nb", "me@-oProxyCommand=x", "-l@host", "@host", "a@b@c", "host/x", "host\\x", "*", "~", "ssh://host",
              "höst"]  # fmt: skip


@pytest.mark.parametrize(
    ("key", "host"), [("hosts", ""), *((key, host) for key in ("hosts", "address") for host in NO_MACHINE)]
)
def test_a_host_that_is_no_name_or_address_is_refused(key: str, host: str) -> None:
    config = on_nodes("first", host) if key == "hosts" else on_nodes("first", "second", address=host)
    with pytest.raises(ConfigError, match="launch.nodes"):
        check_launch(config.launch)


@pytest.mark.parametrize("host", ["n1", "node-1.cluster", "me@node_1", "10.0.0.1", "::1", "[fe80::1%eth0]", "me@[::1]"])
def test_names_and_addresses_of_hosts_are_accepted(host: str) -> None:
    check_launch(on_nodes(host, "second", address=host.rpartition("@")[2]).launch)


@pytest.mark.parametrize(
    ("printed", "says"),
    [
        (
            "error: rank 3 on second was killed by SIGKILL\n  logs: x",
            "rank 3 on second was killed by SIGKILL\n  logs: x",
        ),
        ("error: a rank on second was killed by SIGSEGV", "a rank on second was killed by SIGSEGV"),
        ("error: port 29500 is in use", "first: port 29500 is in use"),
        ("", "first: ended with exit code 1"),
    ],
)
def test_a_failed_rank_is_attributed_to_its_own_machine(printed: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "ssh.log").write_text(printed)
    assert str(nodes._machine_error(on_nodes("first", "second"), 0, 1, tmp_path / "ssh.log")) == says


@pytest.mark.parametrize("ssh", ["", " ", "ssh 'x"])
def test_an_ssh_setting_that_is_no_command_is_refused(ssh: str) -> None:
    with pytest.raises(ConfigError, match="launch.nodes.ssh"):
        check_launch(on_nodes("first", "second", ssh=ssh).launch)


def test_a_missing_ssh_command_is_named(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.write_status(state="frozen", attempt=0)
    with pytest.raises(LaunchError, match="nosuchssh: (No such file|Permission denied)"):
        nodes.NodesBackend().start(on_nodes("first", "second", ssh="nosuchssh"), run)
    assert run.read_status()["state"] == "failed"


def test_a_second_machine_with_the_same_rank_is_refused(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.logs.mkdir()
    (run.logs / "node-1.attempt-0.joined").write_text("second")
    with socket.create_server(("127.0.0.1", 0)) as first:  # it answers at its port
        config = on_nodes(address="127.0.0.1", port=first.getsockname()[1])
        with pytest.raises(LaunchError, match="machine 1 has already been started, on host second"):
            nodes.run_node(config, run, rank=1, attempt=0)
    assert not run.preempt.exists() and (run.logs / "node-1.attempt-0.joined").read_text() == "second"


@pytest.mark.parametrize("rank", [0, 1])
def test_a_second_ctrl_c_leaves_a_run_that_can_be_resumed(
    rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDir(tmp_path)
    run.logs.mkdir()
    run.write_status(state="running", attempt=0)

    def killed(plan: LaunchPlan, log: Path, preempt: Path) -> int:
        preempt.touch()
        return -signal.SIGKILL

    monkeypatch.setattr(nodes.torchrun, "run_ranks", killed)
    with socket.create_server(("127.0.0.1", 0)) as first:
        config = on_nodes(address="127.0.0.1", port=first.getsockname()[1] if rank else free_port())
        assert nodes.run_node(config, run, rank=rank, attempt=0) == EXIT_PREEMPTED
    assert run.read_status()["state"] == ("running" if rank else "preempted")


@pytest.mark.parametrize("value", HOSTILE)
def test_a_hostile_path_reaches_the_remote_shell_unchanged(
    value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sshd gives the command to the user's shell. Here ``ssh`` is a bash that does the same in an empty folder."""
    here, far = tmp_path / value, tmp_path / "far"
    here.mkdir()
    far.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(sys, "executable", f"{tmp_path}/{value}/python")
    (here / "python").write_text('#!/bin/bash\nprintf "%s\\n" "$PYTHONSAFEPATH" "$PWD" "$@"\n')
    (here / "python").chmod(0o755)
    config = on_nodes("first", "second", ssh="bash -c 'exec bash -c \"${@: -1}\"' ssh")
    run = RunDir(f"/runs/{value}")
    done = subprocess.run(nodes.ssh_command(config, run, 1, 3), cwd=far, capture_output=True, text=True, check=True)
    expected = ["1", str(here), "-m", "ftdist", "node", str(run.path), "--rank", "1", "--attempt", "3", "--watch"]
    assert done.stdout.splitlines() == expected and not done.stderr
    assert not list(far.iterdir()) and os.listdir(here) == ["python"]  # noqa: PTH208


@pytest.mark.parametrize("value", HOSTILE)
def test_the_printed_commands_are_quoted_for_a_shell(value: str, tmp_path: Path) -> None:
    """``--dry-run`` prints a line for each machine. A shell splits it into the words of the command."""
    run = RunDir(f"/runs/{value}")
    for config in (on_nodes(), on_nodes("first", "second")):
        lines = [line for line in nodes.NodesBackend().dry_run(config, run).splitlines() if not line.startswith("#")]
        for rank, line in enumerate(lines):
            words = subprocess.run(
                ["bash", "-c", f"printf '%s\\n' {line}"], cwd=tmp_path, capture_output=True, text=True
            )
            assert words.stdout.splitlines() == expected_words(config, run, rank), line
    assert not list(tmp_path.iterdir())


def expected_words(config: RunConfig, run: RunDir, rank: int) -> List[str]:
    attempt = next_attempt(run)
    over_ssh = bool(config.launch.nodes.hosts)
    return nodes.ssh_command(config, run, rank, attempt) if over_ssh else nodes.node_command(run, rank, attempt)


def test_options_of_srun_are_refused_for_other_runners() -> None:
    config = on_nodes("first", "second")
    config.launch.deepspeed.options = ["--partition=gpu"]
    with pytest.raises(ConfigError, match="runner=pdsh"):
        check_launch(config.launch)
    config.launch.deepspeed.runner = Runner.slurm
    check_launch(config.launch)


@pytest.mark.parametrize("value", HOSTILE)
def test_an_option_of_srun_stays_one_word(value: str) -> None:
    """DeepSpeed's launcher splits its options as a shell would."""
    config = on_nodes("first", "second")
    config.launch.deepspeed.runner, config.launch.deepspeed.options = Runner.slurm, [f"--comment={value}"]
    argv = deepspeed.plan_deepspeed(config, RunDir("/runs/a"), 0).argv
    words = shlex.split(argv[argv.index("--launcher_args") + 1])
    assert words[0] == f"--comment={value}" and words[1] == "--nodes=2"


@pytest.mark.parametrize("key", ["run_dir", "name", "runs_dir"])
def test_control_characters_are_refused(key: str) -> None:
    config = on_nodes("first", "second")
    setattr(config, key, "a\nb")
    with pytest.raises(ConfigError, match="control character"):
        check_config(config)
