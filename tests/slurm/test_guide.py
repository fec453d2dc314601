"""The commands of docs/slurm.md, word for word, against a real Slurm: two nodes, a requeue, a sweep."""

import re
import shlex
import signal
import subprocess
from pathlib import Path
from typing import Dict, List

import pytest

from ftdist.run.rundir import RunDir
from tests.helpers.cli import finish
from tests.helpers.runs import wait_for_step
from tests.slurm.cluster import Cluster

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(1800)]

PAGE = Path(__file__).parents[2] / "docs" / "slurm.md"
ELSEWHERE = ("launch=nodes", "launch=deepspeed", "ORG/NAME")
"""Commands that need no Slurm, which tests/nodes runs, and those with a model of the hub, as in test_hub.py."""


def commands() -> List[List[str]]:
    """Return the words of each command in the code blocks of the page, without the explanation at the end of a line."""
    blocks = re.split(r"^```.*\n", PAGE.read_text(), flags=re.MULTILINE)[1::2]
    lines = [line.split("    ")[0] for block in blocks for line in block.splitlines() if line.startswith("ftdist ")]
    return [shlex.split(line)[1:] for line in lines if not any(word in line for word in ELSEWHERE)]


def test_every_command_of_the_guide(slurm: Cluster, tmp_path: Path) -> None:
    run: Dict[str, str] = {}

    def start(words: List[str], *more: str) -> "subprocess.Popen[str]":
        return slurm.ftdist(*(run.get(word, word) for word in words), *more, cwd=tmp_path)

    dry, train, status, watch, logs, cancel, resume, resume_and_follow, resume_on_one, sweep, table = commands()
    assert "#SBATCH" in finish(start(dry))
    finish(start(train))
    follower = start(train, "train.max_steps=400", "optim.schedule=constant", f"run_dir={tmp_path / 'here'}")
    here = RunDir(tmp_path / "here")
    run["runs/20260101-120000-smoke"] = str(here.path)
    wait_for_step(here, 5)
    assert "running" in finish(start(status))
    slurm.run("scontrol", "requeue", here.read_status()["job_id"])
    slurm.wait(lambda: here.read_status()["attempt"] == 1, 120, "the second attempt")
    shown = start(logs)
    wait_for_step(here, here.read_status()["step"] + 5)
    finish(start(cancel))
    finish(follower, 75)
    assert "resumed after step" in finish(shown)
    for words, nodes in ((resume, 2), (resume_and_follow, 2), (resume_on_one, 1)):
        again = start(words)
        wait_for_step(here, here.read_status()["step"] + 5)
        assert slurm.job(here.read_status()["job_id"])["NumNodes"] == str(nodes)
        again.send_signal(signal.SIGINT)
        finish(again, 75)
    finish(start(sweep))
    run["runs/20260101-120000-smoke-sweep"] = str(next(tmp_path.glob("runs/*-sweep")))
    assert finish(start(table)).count("done") == 2
    assert finish(start(watch)).count("done") >= 3, "no run is under way"
