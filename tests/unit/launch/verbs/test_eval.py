"""The verb ``eval``."""

from pathlib import Path

import pytest

from ftdist.base.errors import ConfigError
from ftdist.launch import cli
from tests.unit.launch.run_tools import make_run, stopped_run

pytestmark = pytest.mark.usefixtures("here")


def test_eval_names_the_existing_checkpoints(here: Path) -> None:
    run = make_run(here / "a", state="done")
    run.checkpoint(5).mkdir(parents=True)
    (run.checkpoint(5) / "manifest.json").write_text("{}")
    with pytest.raises(ConfigError, match="no checkpoint '7'") as error:
        cli.dispatch(["eval", "a", "--checkpoint", "7"])
    assert "last, best or a step of: 5" in error.value.expected


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["--tasks", "stdlib_docs,quiz"], "--tasks quiz: there is no such task"),
        (["--tasks", "stdlib_docs,stdlib_docs"], "--tasks names stdlib_docs twice"),
        (["--tasks", "a/q.jsonl,q.jsonl"], "--tasks names q twice"),
        (["--tasks", " ,"], "--tasks is empty"),
        (["--tasks", "q.jsonl", "data.max_seq_len=8"], "ftdist eval --tasks cannot change 'data.max_seq_len=8'"),
    ],
)
def test_eval_refuses_tasks_that_do_not_exist_and_data_that_has_no_effect_on_them(
    here: Path, words: list[str], found: str
) -> None:
    run = stopped_run(here / "run")
    for place in (here / "q.jsonl", here / "a" / "q.jsonl"):
        place.parent.mkdir(exist_ok=True)
        place.write_text("{}")
    with pytest.raises(ConfigError) as error:
        cli.dispatch(["eval", str(run.path), *words])
    assert found in error.value.found and error.value.fix


def test_eval_refuses_an_override_that_would_change_nothing(here: Path) -> None:
    run = stopped_run(here / "run")
    with pytest.raises(ConfigError, match=r"ftdist eval cannot change 'optim\.lr=3'"):
        cli.dispatch(["eval", str(run.path), "data.heldout.mine.path=x.jsonl", "optim.lr=3"])
