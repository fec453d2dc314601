"""Tab completion offers what can stand at that place of the command line."""

import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import List

import pytest

from ftdist.launch.verbs import completion


@pytest.mark.parametrize(
    ("line", "offers"),
    [
        ("ftdist pre", ["prepare", "preview"]),
        ("ftdist completion z", ["zsh"]),
        ("ftdist nonsense x", []),
        ("ftdist train --d", ["--dry-run"]),
        ("ftdist prepare --d", []),
        ("ftdist train seed=1 --cfg ", ["job", "hydra", "all"]),
        ("ftdist train --cfg=j", ["--cfg=job"]),
        ("ftdist train optim=w", ["optim=wsd"]),
        (
            "ftdist train --dry-run zero.offload_optimizer=",
            ["zero.offload_optimizer=none", "zero.offload_optimizer=cpu"],
        ),
        ("ftdist train train.gradient_checkpointing=s", ["train.gradient_checkpointing=selective"]),
        ("ftdist train train.async_checkpoint=t", ["train.async_checkpoint=true"]),
        ("ftdist train +data.sources.mine.fo", ["+data.sources.mine.format="]),
        ("ftdist train data.sources.mine.format=al", ["data.sources.mine.format=alpaca"]),
        ("ftdist train data.sources.mine.path=ch", ["data.sources.mine.path=chats.jsonl"]),
        ("ftdist train experiment=smoke train.max_steps=", ["train.max_steps=6"]),
        ("ftdist train optm.lr=3 optim.lr", ["optim.lr="]),
        ("ftdist train seed=1 --dry-run optim.lr", ["optim.lr="]),
        ("ftdist train name='a b' optim.lr", ["optim.lr="]),
        ("ftdist train data.sources.mine.path='a", []),
        ("ftdist train --config-dir r", ["runs/"]),
        ("ftdist resume ", ["runs/a", "runs/x-sweep"]),
        ("ftdist cancel r", ["runs/a", "runs/x-sweep"]),
        ("ftdist sweep ", ["runs/x-sweep"]),
        ("ftdist resume runs/x", ["runs/x-sweep", "runs/x-sweep/000"]),
        ("ftdist logs runs/x", ["runs/x-sweep/000"]),
        ("ftdist logs r", ["runs/a"]),
        ("ftdist cancel runs/x", ["runs/x-sweep", "runs/x-sweep/000"]),
        ("ftdist resume runs/a zero.st", ["zero.stage="]),
        ("ftdist resume runs/a launch.slurm.t", ["launch.slurm.time=", "launch.slurm.template="]),
        (
            "ftdist resume runs/a train.",
            [
                f"train.{key}="
                for key in (
                    "gradient_checkpointing",
                    "recompute_every",
                    "offload_activations",
                    "compile",
                    "checkpoint_every",
                    "keep_checkpoints",
                    "async_checkpoint",
                )
            ],
        ),
        ("ftdist resume runs/a optim", []),
        ("ftdist train ~hy", []),
        ("ftdist logs runs/a --", ["--follow", "--help", "--rank"]),
        ("ftdist logs runs/a r", []),
        ("ftdist status runs/a r", ["runs/a"]),
        ("ftdist chat r", ["runs/", "runs/a"]),
        ("ftdist eval runs/a --checkpoint ", ["last", "best", "5"]),
        ("ftdist eval --checkpoint ", ["last", "best"]),
        ("ftdist eval runs/a --checkpoint=5", ["--checkpoint=5"]),
        ("ftdist eval runs/a data.heldout.mine.pa", ["data.heldout.mine.path="]),
        ("ftdist eval runs/a zero.s", ["zero.stage="]),
        ("ftdist eval runs/a op", []),
    ],
)
def test_words_are_completed(line: str, offers: List[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("runs/a/run.yaml", "runs/x-sweep/000/run.yaml", "runs/x-sweep/sweep.json",
                 "runs/a/checkpoints/step-00000005/manifest.json", "chats.jsonl"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    assert completion.candidates(line) == offers


@pytest.mark.parametrize(
    ("typed", "given"),
    [
        ("pr\tv\t", "preview"),
        ("train zero.offload_param=c\tseed=1", "train zero.offload_param=cpu seed=1"),
        ("train --dr\tdata.sources.a.path=my\t", "train --dry-run data.sources.a.path=my-chats.jsonl"),
        ("resume ru\t", "resume runs/b:1"),
    ],
)
@pytest.mark.thorough
def test_a_real_bash_completes(typed: str, given: str, tmp_path: Path) -> None:
    """Type keys into an interactive shell, and compare the arguments that the command gets."""
    tool = tmp_path / "bin" / "ftdist"
    tool.parent.mkdir()
    tool.write_text(
        f'#!/bin/sh\ncase $1 in completion|_complete) exec {sys.executable} -m ftdist "$@";; esac\necho "$*" >given\n'
    )
    tool.chmod(0o755)
    (tmp_path / "my-chats.jsonl").write_text("")
    (tmp_path / "runs" / "b:1").mkdir(parents=True)
    (tmp_path / "runs" / "b:1" / "run.yaml").write_text("")
    env = {**os.environ, "PATH": f"{tool.parent}:{os.environ['PATH']}", "TERM": "dumb", "INPUTRC": "/dev/null"}
    ours, theirs = pty.openpty()
    with open(theirs, "rb", buffering=0) as terminal:  # noqa: PTH123 (a file descriptor)
        bash = subprocess.Popen(["bash", "--norc", "--noprofile", "-i"], stdin=terminal, stdout=terminal,
                                stderr=terminal, cwd=tmp_path, env=env, start_new_session=True)  # fmt: skip
    os.write(ours, f'eval "$(ftdist completion bash)"\nftdist {typed}\nexit\n'.encode())
    try:
        while os.read(ours, 4096):  # ends with an error when bash has ended
            pass
    except OSError:
        pass
    finally:
        os.close(ours)
        bash.kill()
        bash.wait()
    assert (tmp_path / "given").read_text().split() == given.split()
