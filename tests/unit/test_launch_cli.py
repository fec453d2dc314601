"""The entry point as a user meets it: help, errors, exit codes; fast, and without torch."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import List

import pytest

from ftdist.errors import ConfigError
from ftdist.launch import cli, completion

HEAVY = ["torch", "deepspeed", "transformers", "datasets", "wandb"]
NO_TORCH = f"""
import sys
from ftdist.launch.cli import main
try:
    main(sys.argv[1:])
finally:
    loaded = [name for name in {HEAVY} if name in sys.modules]
    print("LOADED", loaded, file=sys.stderr)
"""


def ftdist(*words: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-m", "ftdist", *words], capture_output=True, text=True, cwd=cwd, timeout=60)


QUICK = [
    (["--help"], 0),
    (["train", "--help"], 0),
    (["trian"], 2),
    (["train", "experiment=dmo"], 2),
    (["train", "--nonsense"], 2),
    (["status"], 2),
    (["resume", "nowhere"], 2),
    (["train", "experiment=smoke", "launch.device=cuda"], 2),
]


@pytest.mark.parametrize(("words", "code"), QUICK, ids=[" ".join(words) for words, _ in QUICK])
def test_help_and_usage_errors_are_quick_and_load_nothing_heavy(words: List[str], code: int, tmp_path: Path) -> None:
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", NO_TORCH, *words], capture_output=True, text=True, cwd=tmp_path, env=env
    )
    assert time.monotonic() - started < 5  # well under 1 on a machine that does nothing else
    assert done.returncode == code
    assert "LOADED []" in done.stderr and "Traceback" not in done.stderr
    assert ("error: " in done.stderr) == (code == 2)
    assert not any(tmp_path.iterdir())


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.dispatch(["--help"]) == 0
    text = capsys.readouterr().out
    for name, verb in cli.VERBS.items():
        assert f"  {name} {verb.arguments}" in text and verb.summary in text
    assert "ftdist demo" in text and "75" in text
    assert max(map(len, text.splitlines())) <= 120


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.dispatch(["--version"]) == 0
    assert capsys.readouterr().out.startswith("ftdist 0.")


@pytest.mark.parametrize(
    ("word", "near"), [("trian", "train"), ("evall", "eval"), ("prep", "prepare"), ("xyz", "--help")]
)
def test_an_unknown_verb_names_the_nearest(word: str, near: str) -> None:
    with pytest.raises(ConfigError) as error:
        cli.dispatch([word])
    assert error.value.found == f"there is no verb '{word}'" and error.value.fix == f"ftdist {near}"


def test_flags_stand_anywhere(tmp_path: Path) -> None:
    done = ftdist("train", "experiment=smoke", "--cfg", "job", "seed=3", "-p", "optim", cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.startswith("# @package optim\nlr: 0.001")
    assert ftdist("train", "--cfg=job", "seed=3", "name=${seed}", "--resolve", cwd=tmp_path).stdout.startswith(
        "name: '3'"
    )
    assert not any(tmp_path.iterdir())


def test_demo_is_an_experiment_with_the_users_overrides(tmp_path: Path) -> None:
    done = ftdist("demo", "seed=5", "--cfg", "job", cwd=tmp_path)
    assert "name: demo\n" in done.stdout and "seed: 5\n" in done.stdout


BAD_DATA = {
    "missing.jsonl": None,
    "empty.jsonl": b"",
    "broken.jsonl": b'{"text": "a"}\n{"text": \n',
    "utf8.jsonl": b'{"text": "\xff\xfe"}\n',
    "fields.jsonl": b'{"foo": "a"}\n',
}


@pytest.mark.parametrize("name", list(BAD_DATA))
def test_bad_data_leaves_no_run_directory(name: str, tmp_path: Path) -> None:
    content = BAD_DATA[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    done = ftdist("train", "experiment=smoke", "data=file", f"data.sources.file.path={name}", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("error: ") == 1 and name in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("line", "offers"),
    [
        ("ftdist pre", ["prepare ", "preview "]),
        ("ftdist completion z", ["zsh"]),
        ("ftdist train optim=w", ["optim=wsd"]),
        ("ftdist train --conf", []),
        ("ftdist nonsense x", []),
    ],
)
def test_completion(line: str, offers: List[str]) -> None:
    assert completion.candidates(line) == offers


def test_completion_of_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "a").mkdir(parents=True)
    (tmp_path / "runs" / "a" / "run.yaml").write_text("")
    assert completion.candidates("ftdist resume r") == ["runs/a"]


def test_the_bash_script_completes(tmp_path: Path) -> None:
    tool = tmp_path / "ftdist"
    tool.write_text(f'#!/bin/sh\nexec {sys.executable} -m ftdist "$@"\n')
    tool.chmod(0o755)
    script = (
        'eval "$(ftdist completion bash)"; COMP_LINE="ftdist train experiment=de"; COMP_POINT=${#COMP_LINE}; '
        '_ftdist; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=env)
    assert done.stdout == "experiment=demo\n", done.stderr
