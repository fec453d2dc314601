"""Another user of the machine reads a run of root, and is told in one error whose permission is missing."""

import json
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

import pytest

from ftdist.base.errors import EXIT_DONE, EXIT_FAILED, EXIT_USAGE
from ftdist.run.rundir import RunDir
from tests.helpers.cli import FTDIST, Done, ftdist
from tests.helpers.hub import serve_tiny
from tests.helpers.runs import PADDED_ZERO3, SMOKE, copy_of, finished_run
from tests.helpers.users import NOBODY, needs_root, open_to_all, other_user

pytestmark = needs_root
Command = Callable[..., Done]


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that every user may enter. Another pytest that starts would close ``tmp_path`` to them."""
    with tempfile.TemporaryDirectory() as folder:
        yield open_to_all(Path(folder))


@pytest.fixture
def nobody(place: Path) -> Command:
    """Runs ``ftdist WORDS…`` as another user, with a cache and a home of its own."""
    prefix, home = other_user(place / "nobody"), place / "nobody" / "home"
    variables = {"FTDIST_CACHE": f"{home}/cache", "HF_HOME": f"{home}/hub", "TMPDIR": str(home),
                 "FTDIST_SITE": f"{home}/site.yaml"}  # fmt: skip
    return lambda *words, **how: ftdist(
        *words, command=[*prefix, "env", "-u", "HF_HUB_OFFLINE", *FTDIST], cwd=home, **{**variables, **how}
    )


def refused(done: Done, code: int = EXIT_FAILED) -> str:
    """Return the error of a command that was refused: one error, and no traceback."""
    assert done.code == code and "Traceback" not in done.text and done.text.count("error: ") == 1, done.text
    return done.err


def test_a_finished_run_can_be_read_and_not_changed_by_another_user(nobody: Command, place: Path) -> None:
    run = copy_of(finished_run(*PADDED_ZERO3), place / "runs" / "run")
    said = nobody("chat", run.path, "--max-tokens", "4", stdin="hello\n")
    assert said.code == EXIT_DONE and "error" not in said.err, "the model of the export can be loaded"
    shown = nobody("status", run.path.parent)
    assert shown.code == EXIT_DONE and "done" in shown.out
    run.export.chmod(0o700)
    assert f"no permission to read {run.export}/config.json: {run.export} belongs to root and has mode 0700" in refused(
        nobody("chat", run.path)
    )
    (run.find_checkpoint("last") / "manifest.json").chmod(0o600)
    assert "manifest.json belongs to root and has mode 0600" in refused(
        nobody("export", run.path, "--checkpoint", "best")
    )
    run.write_status(state="preempted", exit_reason="stopped")
    assert f"no permission to write {run.path}/" in refused(nobody("resume", run.path))
    run.path.chmod(0o777)  # a folder of a group, in which a run of a colleague is under way
    run.write_status(state="running", pid=os.getpid(), host=platform.node())
    assert "was started by root, whose processes you may not end" in refused(nobody("cancel", "--now", run.path))
    assert not run.cancel.exists(), "nothing was changed"
    stopped = nobody("cancel", run.path)
    assert stopped.code == EXIT_DONE and run.preempt.stat().st_uid == NOBODY
    run.config.chmod(0o600)
    assert "run.yaml belongs to root and has mode 0600" in refused(nobody("chat", run.path))
    run.path.chmod(0o700)
    left_out = nobody("status", run.path.parent)
    assert f"note: {run.path} is left out: it belongs to root and has mode 0700" in left_out.err


def test_a_cache_of_another_user_is_used_or_refused_for_its_permissions(nobody: Command, place: Path) -> None:
    run = finished_run(*PADDED_ZERO3)
    key = json.loads(run.inputs.read_text())["data"]["key"]
    (cache := place / "cache" / "data").mkdir(parents=True)
    copy_of(RunDir(Path(os.environ["FTDIST_CACHE"]) / "data" / key), cache / key)
    shutil.copytree(Path(os.environ["FTDIST_CACHE"]) / "checked", cache.with_name("checked"))
    words = [*PADDED_ZERO3, f"cache_dir={cache.parent}", "--dry-run"]
    assert nobody("train", *words, "run_dir=first").code == EXIT_DONE, "prepared data of another user is used"
    (cache / key / "train" / "tokens.i32").chmod(0o600)
    assert "tokens.i32 belongs to root and has mode 0600" in refused(nobody("train", *words, "run_dir=second"))
    assert not (place / "nobody" / "home" / "second").exists()
    other = nobody("prepare", *SMOKE, f"cache_dir={cache.parent}", "seed=7", "data.max_seq_len=64")
    assert f"the cache {cache.parent} cannot be written on" in refused(other, EXIT_USAGE)
    assert f"{cache} belongs to root and has mode 0755" in other.err


def test_a_hub_cache_that_cannot_be_written_is_one_error(nobody: Command, place: Path) -> None:
    hub = serve_tiny(place / "served")
    (folder := place / "hub").mkdir(0o755)
    done = nobody("prepare", *SMOKE, "model=hub", "model.hub=org/tiny", "model.tokenizer=null",
                  HF_HOME=str(folder), HF_ENDPOINT=hub.url)  # fmt: skip
    hub.stop()
    said = refused(done)
    assert said.startswith("error: no permission to write") and f"{folder} belongs to root and has mode 0755" in said
