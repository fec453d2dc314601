"""Links that another user created are not followed, and files that another user changed are refused."""

import contextlib
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftdist.base.errors import CheckpointError, ConfigError, FtdistError
from ftdist.base.json_files import write_json
from ftdist.base.temporary import temporary_path
from ftdist.config.data import SourceConfig
from ftdist.config.schema import RunConfig
from ftdist.launch import cli
from ftdist.launch.attempt import failure, lifecycle
from ftdist.launch.runs import resolve
from ftdist.launch.runs.freeze import freeze
from ftdist.launch.runs.liveness import observe
from ftdist.launch.sweeps.folder import SweepDir
from ftdist.launch.verbs import status
from ftdist.run.rundir import MANIFEST, RunDir
from ftdist.track.jsonl import JsonLines
from ftdist.track.report import answers, heldout_losses


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A folder that an attacker wants ftdist to overwrite."""
    folder = tmp_path / "precious"
    folder.mkdir()
    (folder / "file").write_text("precious")
    return folder


def untouched(target: Path) -> bool:
    return [path.name for path in target.iterdir()] == ["file"] and (target / "file").read_text() == "precious"


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    monkeypatch.chdir(tmp_path)
    config = RunConfig(run_dir=str(tmp_path / "shared" / "run"))
    config.model.config, config.model.tokenizer = {"model_type": "llama"}, "bytes"
    config.data.sources["mine"] = SourceConfig(path="x.jsonl")
    config.train.max_steps = 10
    config.launch.device = type(config.launch.device).cpu
    return config


def test_temporary_names_cannot_be_guessed(tmp_path: Path, target: Path) -> None:
    """Earlier versions added only the process ID, which everybody can see."""
    (tmp_path / f".status.json.{os.getpid()}").symlink_to(target / "file")
    write_json(tmp_path / "status.json", {})
    assert untouched(target)
    first = {path.name for path in tmp_path.iterdir()}
    write_json(tmp_path / "status.json", {})
    assert {path.name for path in tmp_path.iterdir()} == first, "a temporary file is left behind"


@pytest.mark.parametrize("kind", ["file", "folder", "nothing"])
def test_a_link_in_place_of_a_run_directory_is_refused(kind: str, config: RunConfig, target: Path) -> None:
    place = Path(str(config.run_dir))
    place.parent.mkdir()
    place.symlink_to({"file": target / "file", "folder": target, "nothing": target / "new"}[kind])
    with pytest.raises(ConfigError):
        freeze(config, resolve.resolve(config))
    assert untouched(target) and list(place.parent.iterdir()) == [place]


def test_a_link_to_an_empty_folder_is_refused_as_a_run_directory(config: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    place = Path(str(config.run_dir))
    place.parent.mkdir()
    place.symlink_to(tmp_path / "empty")
    with pytest.raises(ConfigError):
        freeze(config, resolve.resolve(config))
    assert not list((tmp_path / "empty").iterdir())


def test_an_existing_folder_is_refused_for_a_sweep(
    config: RunConfig, tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ftdist.launch.sweeps.sweep.time.strftime", lambda _: "now")
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "now-run-sweep").symlink_to(target)
    words = ["train", "experiment=smoke", "-m", "seed=1,2", f"runs_dir={tmp_path / 'shared'}", "--dry-run"]
    with pytest.raises(ConfigError):
        cli.dispatch([*words, "name=run"])
    assert untouched(target)
    assert os.listdir(tmp_path / "shared") == ["now-run-sweep"]  # noqa: PTH208


def test_logs_and_records_do_not_follow_links(tmp_path: Path, target: Path) -> None:
    from ftdist.parallel.rank_process import redirect_output

    run = RunDir(tmp_path / "run")
    run.logs.mkdir(parents=True)
    for link in (run.metrics, run.log_file(1, 0)):
        link.symlink_to(target / "file")
    lines = JsonLines(run.metrics)
    assert not lines.append({"step": 1})
    lines.cut(lambda record: True)  # a resume does not follow it either
    lines.close()
    assert lines.lost == 1
    with pytest.raises(OSError):
        redirect_output(run, 1, 0)
    assert untouched(target)


def test_a_link_in_place_of_a_checkpoint_is_refused(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    elsewhere = tmp_path / "elsewhere" / "step-00000004"
    elsewhere.mkdir(parents=True)
    write_json(elsewhere / MANIFEST, {"step": 4})
    run.checkpoints.mkdir(parents=True)
    run.checkpoint(4).symlink_to(elsewhere)
    for use in (run.published_checkpoints, run.best_checkpoint, lambda: run.find_checkpoint("last")):
        with pytest.raises(CheckpointError, match="is a link"):
            use()
    # The folder of all checkpoints may be on another disk. Then the user created the link.
    run.checkpoint(4).unlink()
    run.checkpoints.rmdir()
    run.checkpoints.symlink_to(elsewhere.parent)
    assert run.find_checkpoint("last").name == "step-00000004"


def test_leftovers_are_removed_and_their_links_are_not_followed(tmp_path: Path, target: Path) -> None:
    run = RunDir(tmp_path / "run")
    run.path.mkdir()
    (run.path / ".export.0a1b2c3d").symlink_to(target)
    (run.path / ".status.json.0a1b2c3d").symlink_to(target / "file")
    (run.path / ".export.00000000").mkdir()
    lifecycle.remove_temporary_files(run)
    assert untouched(target) and not list(run.path.iterdir())


@pytest.mark.parametrize("umask", [0o077, 0o027, 0o002])
def test_a_run_directory_has_the_permissions_of_the_umask(umask: int, config: RunConfig) -> None:
    before = os.umask(umask)
    try:
        run = freeze(config, resolve.resolve(config))
        JsonLines(run.metrics).append({"step": 0})
    finally:
        os.umask(before)
    for path in [run.path.parent, run.path, *run.path.rglob("*")]:
        full = 0o777 if path.is_dir() else 0o444 if path == run.config else 0o666
        assert stat.S_IMODE(path.stat().st_mode) == full & ~umask, path


STATUS: dict[str, Any] = {
    "not an object": [], "a text": "done", "nothing": None, "state": {"state": ["running"]}, "step": {"step": "4"},
    "attempt": {"attempt": "$(touch x)"}, "pid": {"pid": "1; x"}, "time": {"state": "running", "time": "now"},
    "loss": {"loss": "x"}, "job_id": {"job_id": ["1"]}, "job_id as a flag": {"job_id": 3}, "host": {"host": 1},
    "reason": {"exit_reason": {"a": 1}}, "age": {"last_checkpoint_time": "now"},
}  # fmt: skip


@pytest.fixture
def run(config: RunConfig) -> RunDir:
    return freeze(config, resolve.resolve(config))


@pytest.mark.parametrize("content", STATUS.values(), ids=STATUS)
@pytest.mark.thorough
def test_a_status_with_wrong_types_is_refused_by_every_command(content: Any, run: RunDir) -> None:
    run.status.write_text(json.dumps(content))
    for verb in ("resume", "status", "logs", "cancel", "chat"):
        with pytest.raises(FtdistError) as error:
            cli.dispatch([verb, str(run.path)])
        assert verb == "chat" or "status.json" in str(error.value), (verb, error.value)


def test_an_exit_reason_is_shown_as_text(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    run.write_status(state="failed", exit_reason="KeyError: '[/bold]' [red]x\x1b]0;title\x07")
    cli.dispatch(["status", str(run.path)])
    shown = capsys.readouterr().out
    assert "'[/bold]' [red]x" in shown and "\x1b" not in shown and "\x07" not in shown


RECORDS = ["[]", "1", '{"step": "x"}', '{"step": 0, "eval/a/loss": {}}', '{"step": 0, "eval/a/loss": "x"}',
           '{"step": [0]}', '{"eval/a/loss": 1}', '{"step": 0, "set": [], "index": {}, "answer": 1}',
           "{'a': __import__('os')}"]  # fmt: skip


def test_records_with_wrong_types_are_left_out(run: RunDir) -> None:
    good = ['{"step": 0, "eval/a/loss": 2.0}', '{"step": 4, "eval/a/loss": "nan"}']
    rows = [json.dumps({"step": step, "set": "a", "index": 0, "question": "q", "answer": f"{step}"}) for step in (0, 4)]
    run.metrics.write_text("\n".join([*RECORDS, *good]) + "\n")
    run.samples.write_text("\n".join([*RECORDS, *rows]) + "\n")
    ((name, ((first, loss), (last, _))),) = heldout_losses(run).items()
    assert (name, first, loss, last) == ("a", 0, 2.0, 4)
    assert [(row["before"], row["after"]) for row in answers(run)] == [("0", "4")]
    assert {"step": 0, "eval/a/loss": 2.0} in run.read_metrics()
    found = run.read_status()
    status.status_row(run, found, *observe([found]))


@pytest.mark.parametrize(
    "line", ['{"number": "1", "overrides": []}', '{"number": 0}', '{"number": 0, "overrides": [1]}']
)
def test_an_index_with_wrong_types_is_refused(line: str, tmp_path: Path) -> None:
    (tmp_path / "index.jsonl").write_text(line + "\n")
    with pytest.raises(ConfigError, match="index.jsonl"):
        SweepDir(tmp_path).trials()


def test_error_files_with_wrong_types_are_ignored(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.logs.mkdir()
    for rank, content in enumerate(
        ["[]", '{"time": "x"}', '{"time": 1}', "{", '{"time": 2, "rank": 4, "message": "m"}']
    ):
        run.error_file(rank, 0).write_text(content)
    error = failure.explain_failure(run, 0, [run.logs / "none"], 1)
    assert error.found.startswith("rank 4: m")


@pytest.mark.parametrize("make", [Path.touch, Path.mkdir, lambda path: path.symlink_to(path.parent / "x")])
def test_an_existing_temporary_name_is_not_used(
    make: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This holds even if an attacker guesses the random part."""
    monkeypatch.setattr("ftdist.base.temporary.secrets.token_hex", lambda _: "00000000")
    make(temporary_path(tmp_path / "a.json"))
    with contextlib.suppress(IsADirectoryError), pytest.raises(FileExistsError):
        write_json(tmp_path / "a.json", {})
    assert not (tmp_path / "x").exists() and not (tmp_path / "a.json").exists()
