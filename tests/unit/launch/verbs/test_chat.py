"""The verb ``chat``."""

from pathlib import Path
from typing import List

import pytest

from ftdist.base.errors import ConfigError
from ftdist.launch import cli
from tests.unit.launch.run_tools import make_run

pytestmark = pytest.mark.usefixtures("here")


@pytest.mark.parametrize(
    ("given", "holds", "says", "fix"),
    [
        ("a", [], "a has no export; the run holds no checkpoint yet", "ftdist resume a"),
        ("a", ["checkpoints"], "a has no export; the run holds checkpoints of step 5, 10", "ftdist export a"),
        ("a/nothere", ["export", "checkpoints"],
         "a/nothere does not exist; the run holds an export and checkpoints of step 5, 10", "ftdist chat a"),
        ("a/checkpoints", ["checkpoints"], "a/checkpoints is not a model", "ftdist export a"),
        ("b", ["export"], "b does not exist", "run ftdist status"),
        ("ab", ["export"], "ab does not exist", "ftdist chat a"),
    ],
)  # fmt: skip
def test_chat_refuses_a_folder_that_holds_no_model(
    given: str, holds: List[str], says: str, fix: str, here: Path
) -> None:
    run = make_run(here / "a", state="preempted")
    if "export" in holds:
        run.export.mkdir()
    for step in (5, 10) if "checkpoints" in holds else ():
        run.checkpoint(step).mkdir(parents=True)
        (run.checkpoint(step) / "manifest.json").write_text("{}")
    with pytest.raises(ConfigError) as error:
        cli.dispatch(["chat", given])
    assert error.value.found.startswith(says) and error.value.fix.startswith(fix)
