"""Terminals in ASCII and Latin-1, and paths with spaces, quotes and Unicode: the exit code is that of the work."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ftdist.base.errors import EXIT_DONE, EXIT_USAGE
from ftdist.run.rundir import RunDir
from tests.helpers.cli import Done, environment, ftdist, succeed
from tests.helpers.forkserver import forking
from tests.helpers.runs import SMOKE

NAME = "größe 5→ü"
FOLDER = f"a 'b' \"c\" $d {NAME}"
SHORT = (
    *SMOKE,
    "train.max_steps=2",
    "data.builtin_general=false",
    "train.eval_every=null",
    "data.sources.fake.max_documents=60",
    "data.num_workers=1",
)


def on_terminal(encoding: str, *words: str | Path, **how: str) -> Done:
    """Run ``ftdist`` with standard streams in an encoding. Its output must be text in that encoding."""
    with forking():
        done = subprocess.run(
            [sys.executable, "-m", "ftdist", *map(str, words)], capture_output=True, timeout=120,
            cwd=how.pop("cwd", None), env=environment(PYTHONIOENCODING=encoding), input=how.pop("stdin", "").encode(),
        )  # fmt: skip
    done.stdout.decode(encoding)
    done.stderr.decode(encoding)
    return Done(done.returncode, done.stdout.decode(encoding), done.stderr.decode(encoding), 0.0, 0.0)


@pytest.fixture(scope="module", params=["ascii", pytest.param("latin-1", marks=pytest.mark.slow)])
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, RunDir, Done]:
    home = tmp_path_factory.mktemp(FOLDER)
    answer = {"role": "assistant", "content": "ja ✓"}
    chats = [[{"role": "user", "content": f"größe → 日本 {number}"}, answer] for number in range(40)]
    lines = [json.dumps({"messages": chat}, ensure_ascii=False) + "\n" for chat in chats]
    (home / "chats ö.jsonl").write_text("".join(lines), encoding="utf-8")
    done = on_terminal(
        request.param, "train", *SHORT, f"name={NAME}", "data=file", "data.sources.file.path=chats ö.jsonl",
        "~data.sources.fake", "cache_dir=cache", "data.heldout_share=0.2", cwd=str(home),
    )  # fmt: skip
    runs = [path for path in (home / "runs").iterdir() if path.name.endswith(NAME)] if done.code == 0 else []
    assert runs, done.text
    return request.param, RunDir(runs[0]), done


def test_a_run_with_any_name_ends_well_on_any_terminal(finished: tuple[str, RunDir, Done]) -> None:
    encoding, run, done = finished
    assert run.read_status()["state"] == "done" and not done.err
    assert re.search(r"\d -> \d", done.out), "the arrow of the last lines"
    assert "größe → 日本" in run.samples.read_text(encoding="utf-8"), "files are in UTF-8 all the same"
    assert ("größe" in done.out) == (encoding == "latin-1")


@pytest.mark.parametrize("finished", ["ascii"], indirect=True)
def test_all_verbs_end_well_on_any_terminal(finished: tuple[str, RunDir, Done]) -> None:
    encoding, run, _ = finished
    verbs = [("status", run.path), ("logs", run.path), ("eval", run.path), ("resume", run.path), ("export", run.path),
             ("chat", run.path, "--max-tokens", "4"), ("cancel", run.path)]  # fmt: skip
    for verb in verbs:
        done = on_terminal(
            encoding, *verb, cwd=str(run.path.parent), stdin="größe → 日本\n" if verb[0] == "chat" else ""
        )
        assert done.code in ((EXIT_DONE, EXIT_USAGE) if verb[0] == "cancel" else (EXIT_DONE,)), done.text
        assert "Error" not in done.text and "Traceback" not in done.text
    shown = on_terminal(encoding, "preview", *SHORT, f"name={NAME}")
    assert shown.code == 0 and not shown.err and "- document" in shown.out
    for words in (
        ["--help"],
        ["train", "--help"],
        ["train", *SHORT, f"name={NAME}", "--cfg", "job"],
        ["completion", "bash"],
    ):
        assert on_terminal(encoding, *words).code == 0
    missing = on_terminal(encoding, "resume", "größe→")
    assert missing.code == EXIT_USAGE and "gr" in missing.err and "does not exist" in missing.err


@pytest.mark.parametrize("finished", ["ascii"], indirect=True)
def test_every_command_that_is_offered_can_be_pasted(finished: tuple[str, RunDir, Done], tmp_path: Path) -> None:
    _, run, _ = finished
    home = run.path.parents[2]
    again = succeed("resume", run.path, cwd=home)
    offered = re.search(r"'?model\.path=.*$", again.out, re.M)
    assert offered and shlex.split(offered[0]) == [f"model.path={run.export.relative_to(home)}"], again.out
    shutil.rmtree(run.export)
    refused = ftdist("chat", run.path)
    command = refused.err.partition("fix:")[2].strip()
    assert shlex.split(command) == ["ftdist", "export", str(run.path)]
    there = on_terminal("ascii", "chat", run.path)  # the name of the folder cannot be shown there
    command = there.err.partition("fix:")[2].strip()
    assert command.startswith("ftdist export $'") and command.isascii()
    done = subprocess.run(
        ["bash", "-c", f'exec "$0" -m {command}', sys.executable], env=environment(), capture_output=True
    )
    assert done.returncode == 0 and run.export.is_dir(), done.stderr
