"""The commands of docs/slurm.md, word for word, against a real Slurm: two nodes, a requeue, a sweep. The lines of other
programs are checked without a run."""

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

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1800)]

PAGE = Path(__file__).parents[2] / "docs" / "slurm.md"
ELSEWHERE = ("launch=nodes", "launch=deepspeed", "ORG/NAME")
"""Commands that need no Slurm, which tests/nodes runs, and those with a model of the hub, as in test_hub.py."""
PROGRAMS = ("ftdist", "srun", "squeue", "sbatch", "scancel", "export", "rsync", "wandb")
PRINTED = ("model      ORG/NAME at ", "data …/offline/cache/")
"""What ``ftdist prepare`` prints."""


def lines() -> List[str]:
    """Return the command lines in the code blocks of the page, without the explanation at the end of a line."""
    blocks = re.split(r"^```(.*)\n", PAGE.read_text(), flags=re.MULTILINE)[1:]
    shell = [text for kind, text in zip(blocks[::4], blocks[1::4], strict=True) if not kind]
    found = [line for text in shell for line in text.splitlines() if line and not line.startswith(PRINTED)]
    return [line.split("    ")[0] for line in found]


def commands() -> List[List[str]]:
    """Return the words of each command of ftdist that needs this cluster."""
    ours = [line for line in lines() if line.startswith("ftdist ")]
    return [shlex.split(line)[1:] for line in ours if not any(word in line for word in ELSEWHERE)]


def test_the_lines_of_other_programs(slurm: Cluster) -> None:
    """Slurm accepts the options of each ``srun``, in the sizes of this cluster, and ftdist the command that it starts.
    ``squeue`` runs as printed. bash can read all lines."""
    found = lines()
    assert [line for line in found if line.split()[0] not in PROGRAMS] == []
    text = "\n".join(found)
    read = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True)
    assert read.returncode == 0, read.stderr
    assert slurm.run(*shlex.split(next(line for line in found if line.startswith("squeue")))).startswith("JOBID")
    tasks = [re.split(" (?=ftdist )", line) for line in found if line.startswith("srun")]
    assert [line[1].split()[1] for line in tasks] == ["train", "resume"]
    for options, command in tasks:
        here = re.sub(r"(per-node|per-task)=\d+", r"\1=2", options)
        tested = subprocess.run(
            [*shlex.split(here), "--test-only", "true"], env=slurm.env, capture_output=True, text=True
        )
        assert tested.returncode == 0 and "to start at" in tested.stderr, tested.stderr
        if command.startswith("ftdist train"):
            assert "run_dir: RUN_DIR" in finish(slurm.ftdist(*shlex.split(command)[1:], "--cfg", "job"))


@pytest.mark.slow
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
