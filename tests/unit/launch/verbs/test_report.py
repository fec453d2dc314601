"""The verb ``report``: which runs are reported, and where they are compared."""

import platform
from pathlib import Path
from typing import List

import pytest

from ftdist.base.errors import ConfigError
from ftdist.launch import cli
from ftdist.launch.sweeps.folder import SweepDir
from ftdist.launch.verbs import report
from tests.unit.launch.run_tools import make_run

pytestmark = pytest.mark.usefixtures("here")


def test_the_trials_of_a_sweep_that_have_begun_are_compared(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: List[List[str]] = []
    monkeypatch.setattr(report, "run_program", started.append)
    sweep = SweepDir(here / "sweep")
    runs = [make_run(sweep.path / name, state="done") for name in ("000", "001", "002")]
    sweep.request.write_text("{}")
    sweep.add_trials([sweep.trial(number, []) for number in range(4)])
    with pytest.raises(ConfigError, match="no trial of sweep has begun"):
        cli.dispatch(["report", "sweep"])
    for run in runs[:2]:
        run.metrics.write_text("")
    assert cli.dispatch(["report", "sweep", "--quick"]) == 0
    left_out = "note: 2 trials of sweep without metrics are left out: 002 (done), 003 (not started)\n"
    assert capsys.readouterr().err.endswith(left_out)
    first, second = (str(run.path) for run in runs[:2])
    page = ["--compare", str(Path("sweep") / "report.html")]
    assert [str(Path(word).resolve()) if "sweep" in word else word for word in started[0]] == [
        "ftdist.report.main", "--checkpoint", "last", "--quick", page[0], str(here / page[1]), first, second
    ]  # fmt: skip
    assert cli.dispatch(["report", "sweep/000", "sweep/002"]) == 0 and "--compare" not in started[1]
    runs[2].write_status(state="running", host=platform.node(), pid=2**22 + 1)
    assert cli.dispatch(["report", "sweep/000", "sweep/002"]) == 0
    dead = started[2].index("--dead")
    assert started[2][dead + 1] == started[2][-1] and started[2].count("--dead") == 1 and "--dead" not in started[1]
