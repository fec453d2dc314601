"""Which process is the agent of a W&B sweep (real processes)."""

import subprocess
import sys

import pytest

from ftdist.launch.attempt.agent import SWEEP, sweep_agent

TRIAL = "from ftdist.launch.attempt.agent import sweep_agent; agent = sweep_agent(); print(agent and agent.pid)"
AGENT = """
import os, subprocess, sys
print(os.getpid(), flush=True)
os.environ[sys.argv[2]] = "s1"
subprocess.run(["sh", "-c", '"$0" -c "$1" && true', sys.executable, sys.argv[1]], check=True)
"""


@pytest.mark.parametrize(("name", "word"), [(SWEEP, "agent"), ("OTHER", "agent"), (SWEEP, "a user's script")])
def test_the_agent_is_found_through_a_shell(name: str, word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SWEEP, raising=False)
    command = [sys.executable, "-c", AGENT, TRIAL, name, word]
    agent, found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert found == (agent if (name, word) == (SWEEP, "agent") else "None")


def test_without_a_sweep_there_is_no_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SWEEP, raising=False)
    assert sweep_agent() is None
