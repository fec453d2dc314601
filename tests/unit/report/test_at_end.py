"""The report at the end of a run."""

import json
import threading
import time
from pathlib import Path
from typing import Dict, List

import pytest

from ftdist.config.frozen import load_config
from ftdist.report import at_end
from ftdist.report.at_end import report_at_end, report_failure
from ftdist.run.rundir import RunDir
from ftdist.track.tracker import Tracker
from ftdist.train.main import end_training
from tests.unit.report.test_facts import make_run

Told = List[Dict[str, float]]


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return make_run(tmp_path / "run", "model.config.num_hidden_layers=1", "report.price_per_device_hour=2",
                    "train.export=false", "track.wandb=disabled", state="running", step=4, max_steps=4)  # fmt: skip


def tracker_of(run: RunDir, told: Told) -> Tracker:
    """Return a tracker with a sink that keeps what it is told about the report."""

    class Sink:
        def report(self, files: Dict[str, str], numbers: Dict[str, float]) -> None:
            told.append(dict(numbers))
            assert sorted(files) == ["report.html", "report.json"] and all(
                "-16.7 %" in text or "3.0" in text for text in files.values()
            )
            published = "".join(files.values())
            assert "experiment=demo" not in published and "/home/me" not in published and str(run.path) not in published
            assert "ftdist train experiment=demo" in run.report_page.read_text()

    tracker = Tracker(load_config(run.config), run, 0, resumed=True)
    tracker._sinks = [Sink()]  # type: ignore[list-item]
    return tracker


@pytest.mark.parametrize("at_end", [True, False])
def test_the_report_is_written_before_the_tracker_is_closed_unless_it_is_off(run: RunDir, at_end: bool) -> None:
    told: Told = []
    config = load_config(run.config)
    config.report.at_end = at_end
    said = end_training(config, run, 0, tracker_of(run, told))
    if not at_end:
        assert (said, told) == ([], []) and not run.report.exists() and not run.timeline.exists()
        return
    assert said[0] == "The run is done after 4 of 4 steps and 400 tokens."
    report = json.loads((run.report / "report.json").read_text())
    assert report["commands"]["continue"].startswith("ftdist train "), "a run that is done cannot be resumed"
    assert report["state"] == "done" and run.read_status()["state"] == "running" and report["moved"] is None
    assert told == [{"gain": 0.5, "forgetting": 0.25, "goodput": 0.0, "device_hours": report["cost"]["device_hours"],
                     "cost": report["cost"]["price"]}]  # fmt: skip


def test_a_report_that_fails_is_one_line_and_fails_nothing(run: RunDir) -> None:
    run.report.write_text("a file where the folder should be")
    told: Told = []
    said = report_at_end(run, tracker_of(run, told))
    assert told == [] and len(said) == 1 and "\n" not in said[0]
    assert said[0].startswith("no report: ") and said[0].endswith(f"to write it: ftdist report {run.path}")


def test_a_run_that_fails_has_a_report_with_its_error_and_no_secret(run: RunDir) -> None:
    run.record_phase("steps", 0, step=4, ranks=1)
    told: Told = []
    report_failure(run, tracker_of(run, told), RuntimeError("out of memory with token hf_" + "a" * 34 + "\nand more"))
    report = json.loads((run.report / "report.json").read_text())
    assert (report["state"], report["goodput"]["attempts"][-1]["state"]) == ("failed", "failed") and len(told) == 1
    assert report["reason"].startswith("out of memory") and "aaaa" not in report["reason"] + run.report_page.read_text()
    assert run.read_status()["state"] == "running" and report["commands"]["continue"].startswith("ftdist resume ")


def test_a_report_that_hangs_does_not_keep_a_failed_run(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()
    monkeypatch.setattr(at_end, "FAILED_LIMIT_S", 0.1)
    monkeypatch.setattr(at_end, "build_report", lambda *args, **kwargs: ended.wait(60))
    begun = time.monotonic()
    report_failure(run, tracker_of(run, []), ValueError())
    assert time.monotonic() - begun < 20
    ended.set()
