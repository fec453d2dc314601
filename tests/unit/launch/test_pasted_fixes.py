"""What a message offers can be pasted into a shell, with names that hold spaces, quotes and brackets."""

import platform
import shlex
from pathlib import Path
from typing import Callable, List

import pytest

from ftdist.base.errors import FtdistError
from ftdist.data.text_files import _converted
from ftdist.launch.backends.foreground import _launcher
from ftdist.launch.config import messages
from ftdist.launch.runs import banner
from ftdist.run.rundir import RunDir
from ftdist.run.source_files import source_files
from ftdist.run.split_names import missing_split

NAME = "it's a $HOME"


def fix_of(act: Callable[[], object]) -> List[str]:
    with pytest.raises(FtdistError) as error:
        act()
    return shlex.split(error.value.fix)


def test_fixes_quote_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / NAME
    folder.mkdir()
    (folder / "one.json").write_text("{}")
    (folder / "two.csv").write_text("a\n1\n")
    source = "data.sources.mine"
    assert fix_of(lambda: source_files(source, f"{folder}/ome.json")) == [f"{source}.path={folder}/one.json"]
    assert fix_of(lambda: source_files(source, str(folder))) == [f"{source}.path={folder}/*.csv"]
    assert shlex.split(missing_split(source, NAME, "train", ["test"]).fix)[-2] == f"data.heldout.NAME.path={NAME}"
    assert shlex.split(_converted(Path(NAME), "latin1")) == [
        "iconv", "-f", "latin1", "-t", "utf-8", NAME, ">", f"utf8-{NAME}"
    ]  # fmt: skip
    run = RunDir(tmp_path / NAME)
    run.write_status(state="running", host=f"not-{platform.node()}", pid=1)
    ssh = fix_of(lambda: _launcher(run))
    assert ssh[:2] == ["ssh", f"not-{platform.node()}"]
    assert shlex.split(ssh[2]) == ["ftdist", "cancel", "--now", str(run.path)]  # the remote shell reads it once more
    data = {"sources": {"mine": {"pth": NAME}}}
    assert fix_of(lambda: messages.check_source_keys(data)) == [f"data.sources.mine.path={NAME}"]


def test_the_next_commands_quote_paths(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunDir(tmp_path / f"{NAME} [bold]")
    run.export.mkdir(parents=True)
    run.write_status(state="done")
    banner.show_next(run, 0, 3.0)
    said = capsys.readouterr().out.splitlines()
    assert shlex.split(said[-2]) == ["ftdist", "eval", str(run.path), "--checkpoint", "best"]
    assert ["ftdist", "chat", str(run.path)] in [shlex.split(line.removeprefix("next"))[-3:] for line in said]
    banner.show_next(run, 75, 3.0)
    [line] = capsys.readouterr().out.splitlines()
    assert shlex.split(line.partition("with: ")[2]) == ["ftdist", "resume", str(run.path)]
