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


def test_eval_refuses_an_override_that_would_change_nothing(here: Path) -> None:
    run = stopped_run(here / "run")
    with pytest.raises(ConfigError, match=r"ftdist eval cannot change 'optim\.lr=3'"):
        cli.dispatch(["eval", str(run.path), "data.heldout.mine.path=x.jsonl", "optim.lr=3"])
