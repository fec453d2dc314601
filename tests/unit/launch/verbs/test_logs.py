"""The verb ``logs``, and what verbs say about a run that does not exist."""

import os
import platform
from pathlib import Path
from typing import List

import pytest

from ftdist.base.errors import ConfigError
from ftdist.launch import cli
from ftdist.launch.backends.base import Seen, Status
from ftdist.launch.verbs import logs
from tests.unit.launch.run_tools import make_run

pytestmark = pytest.mark.usefixtures("here")


def test_an_error_about_a_missing_run_or_log_names_similar_ones(here: Path) -> None:
    make_run(here / "mine", state="done").log_file(1, 0).touch()
    for words, expected, fix in (
        (["resume", "mime"], "a run directory", "mine"),
        (["status", "mime"], "a run directory, or a folder of them", "ftdist status mine"),
        (["logs", "mine", "--rank", "5"], "--rank with one of 1", "ftdist status mine"),
    ):
        with pytest.raises(ConfigError) as error:
            cli.dispatch(words)
        assert (error.value.expected, error.value.fix) == (expected, fix)


def test_logs_do_not_wait_for_a_rank_that_does_not_exist(here: Path) -> None:
    make_run(here / "over", state="done").log_file(0, 0).touch()
    make_run(here / "busy", state="running", host=platform.node(), pid=os.getpid()).log_file(0, 0).touch()
    for place in ("over", "busy"):  # of one rank
        with pytest.raises(ConfigError, match="has no log of rank 99"):
            cli.dispatch(["logs", place, "--rank", "99", "-f"])


def test_following_says_why_there_is_no_log_yet(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(here / "waits", state="queued", backend="slurm", job_id="7")
    why = iter(["pending: Priority", "pending: Priority", "pending: Resources"])
    monkeypatch.setattr(logs, "ASK_S", 0)
    monkeypatch.setattr(logs, "liveness", lambda status: "queued")

    def observe(statuses: List[Status]) -> List[Seen]:
        detail = next(why, None)
        if detail is None:
            run.write_status(state="done")
        return [Seen("queued", f"job 7 {detail}") if detail else Seen("done")]

    monkeypatch.setattr(logs, "observe", observe)
    monkeypatch.setattr(logs, "POLL_S", 0)
    assert cli.dispatch(["logs", "waits", "-f"]) == 0
    assert capsys.readouterr().err == "job 7 pending: Priority\njob 7 pending: Resources\n"
