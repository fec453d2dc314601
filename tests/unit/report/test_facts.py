"""What a run directory knows about its run."""

import json
from pathlib import Path
from typing import Any, List, Optional

import numpy as np
import pytest

from ftdist.config.frozen import dump_config
from ftdist.data.prepare import prepare
from ftdist.plan.goodput import LOST, Attempt, Goodput, goodput_of
from ftdist.report import main
from ftdist.report.facts import changed_settings, data_of, facts_of, resumes_of, tokens_until, waiting_s
from ftdist.run.rundir import RunDir
from ftdist.run.task_results import write_result
from ftdist.run.timeline import STEPS
from ftdist.track.gain import DocumentLosses, write_evaluation
from tests.unit.data_tools import chat, data_config, write_jsonl

RECORDS: list[dict[str, Any]] = [
    {"step": 0, "eval/docs/loss": 3.0}, *({"step": n, "train/loss": 3.0 - n / 10, "train/tokens_seen": 100 * n}
    for n in range(1, 4)), {"step": 4, "train/loss": "nan", "train/tokens_seen": 400, "train/bad": "loss is nan"},
    {"step": 3, "train/rolled_back_from": 8, "train/bad": "loss is nan"}, {"step": 4, "eval/docs/loss": 2.5},
    *({"step": step, "forgetting/kl": kl, "forgetting/kl_error": kl / 25} for step, kl in ((0, 0.0), (4, 0.25))),
]  # fmt: skip


def make_run(folder: Path, *overrides: str, **status: Any) -> RunDir:
    """Make a run directory with a config, metrics, and where it came from."""
    run = RunDir(folder)
    folder.mkdir()
    run.config.write_text(dump_config(data_config(folder, "name=mine", *overrides)))
    run.metrics.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    git = {"commit": "abc", "status": " M x\n"}
    origin = {"command": "ftdist train experiment=demo", "cwd": "/home/me", "git": git,
              "resumes": [{"overrides": ["zero.stage=1"]}], "packages": {"torch": "2"}}  # fmt: skip
    run.provenance.write_text(json.dumps(origin))
    run.write_status(**status)
    return run


def test_curves_faults_and_commands(tmp_path: Path) -> None:
    run = make_run(
        tmp_path / "run", "optim.lr=0.5", state="failed", step=4, max_steps=9, exit_reason="rank 1: out of memory"
    )
    (run.checkpoints / "bad-step-00000002").mkdir(parents=True)
    found = facts_of(run, data_config(tmp_path, "name=mine", "optim.lr=0.5"))
    assert found["heldout"] == {"docs": [[0, 3.0], [4, 2.5]]} and found["tokens"] == 400
    assert found["forgetting"] == {"curve": [[0, 0.0, 0.0], [4, 0.25, 0.01]], "warning": None} and found["gain"] == {}
    tokens = np.array([2.0, 2.0])
    for step, loss in ((0, 3.0), (4, 2.875)):
        write_evaluation(run, step, {"docs": DocumentLosses(loss * tokens, tokens)})
    found = facts_of(run, data_config(tmp_path, "name=mine", "optim.lr=0.5"))
    assert found["gain"]["docs"]["change"] == {"value": -0.125, "low": -0.125, "high": -0.125}
    assert "optim.lr=1.7e-01" in found["forgetting"]["warning"], "0.25 - 2 · 0.01 is more than 0.125"
    assert found["train"] == [[1, 2.9], [2, 2.8], [3, 2.7], [4, "nan"]]
    assert found["faults"] == [
        "bad step 4: loss is nan; the weights were not updated", "rolled back from step 8 to step 2: loss is nan",
        "checkpoint bad-step-00000002 was damaged and set aside", "resumed with other settings: zero.stage=1",
    ]  # fmt: skip
    assert (
        found["commands"]["repeat"] == "ftdist train experiment=demo" and found["commands"]["git"]["changed_files"] == 1
    )
    assert found["commands"]["continue"] == f"ftdist resume {run.path}"
    assert {"key": "optim.lr", "value": 0.5, "default": 1e-05} in found["settings"]


@pytest.mark.parametrize(
    ("argv", "method", "command"),
    [
        (["train", "experiment=x", "model=hub", "model.hub=a/b", "+model.config.x=1", "model.attention=rows", "a=b c"],
         [], "train experiment=x model.attention=rows 'a=b c' model=folder model.path={run}/export"),
        (["demo", "method=lora", "method.r=8", "run_dir=y"], ["method.kind=lora"],
         "demo method.r=8 method=lora method.init_from={run}"),
        (["train", "-m", "optim.lr=1,2"], [], "train … model=folder model.path={run}/export"),
    ],
)  # fmt: skip
def test_the_command_that_goes_on_from_a_finished_run_is_whole(
    tmp_path: Path, argv: List[str], method: List[str], command: str
) -> None:
    run = make_run(tmp_path / "run", state="done")
    run.provenance.write_text(json.dumps({"argv": ["ftdist", *argv]}))
    found = facts_of(run, data_config(tmp_path, *method))["commands"]["continue"]
    assert found == f"ftdist {command.format(run=run.path)}"


def test_each_attempt_after_the_first_is_a_resume() -> None:
    attempts = [Attempt(0, 0.0, {}, 0, 20), Attempt(1, 9.0, state="failed"), Attempt(2, 9.5, {}, 10, 30, "preempted"),
                Attempt(3, 10.0, {}, 30, 40, "done")]  # fmt: skip
    assert resumes_of(attempts) == [
        "attempt 0 was killed; attempt 1 has not trained", "attempt 1 failed; attempt 2 went on from step 10",
        "attempt 2 was stopped; attempt 3 went on from step 30",
    ]  # fmt: skip


def test_a_run_that_was_killed_is_dead_in_its_report_and_steps_after_its_checkpoint_are_lost(
    tmp_path: Path,
) -> None:
    run = make_run(tmp_path / "run", "model.config.num_hidden_layers=1", state="running", step=4, max_steps=9,
                   last_checkpoint_step=2)  # fmt: skip
    for second, phase, step in ((0, "loading", None), (10, "steps", 0), (50, "steps", 4)):
        timeline = {"time": 1e9 + second, "attempt": 0, "phase": phase, "ranks": 2, "step": step}
        with run.timeline.open("a") as file:
            file.write(json.dumps({name: value for name, value in timeline.items() if value is not None}) + "\n")
    assert main.main(["--quick", "--dead", str(run.path), str(run.path)]) == 0
    report = json.loads((run.report / "report.json").read_text())
    assert (report["state"], report["goodput"]["attempts"][0]["state"]) == ("dead", "dead")
    assert report["goodput"]["seconds"] == {"loading": 10, "steps": 20, "lost": 20} and report["goodput"]["lost_steps"]
    assert (report["tokens"], report["cost"]["tokens"]) == (400, 200), "the cost is that of the steps that count"
    text = (run.report / "report.md").read_text()
    assert (
        "The run is dead (its processes ended without recording a reason) after 4 of 9 steps" in text
        and "ftdist resume" in text
    )
    assert report["goodput"]["waiting_s"] is None and "Waiting for slower ranks" not in text, "no times of steps"
    assert goodput_of(run, alive=True).lost_steps == 0 and goodput_of(run, True, failing=True).lost_steps == 2


def test_the_newest_checkpoint_says_how_many_steps_and_tokens_count(tmp_path: Path) -> None:
    """The run was killed before it wrote the step of the checkpoint to status.json, and logs every second step."""
    run = make_run(tmp_path / "run", state="failed", step=4, last_checkpoint_step=1)
    run.checkpoint(3).mkdir(parents=True)
    (run.checkpoint(3) / "manifest.json").write_text("{}")
    (run.checkpoint(3) / "state.json").write_text(json.dumps({"tokens_seen": 333}))
    assert [tokens_until(run, step) for step in (goodput_of(run).saved_step, 3, 2, None)] == [333, 333, 200, 400]
    run.checkpoint(4).symlink_to(run.checkpoint(3))
    assert goodput_of(run).saved_step == 1, "a link is refused when it is loaded"


@pytest.mark.parametrize(("ranks", "seconds"), [(2, 10.0), (1, None)])
def test_the_wait_for_slower_ranks_is_known_for_several_ranks(ranks: int, seconds: Optional[float]) -> None:
    goodput = Goodput([Attempt(0, 0.0, {STEPS: 40.0, LOST: 40.0}, ranks=ranks)])
    assert waiting_s({"step_s": 2.0, "agreement_s": 0.5}, goodput) == seconds
    assert waiting_s({}, goodput) is None


def test_the_data_of_a_run_has_its_counts_and_a_sample(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", [chat("what?", "an answer"), chat("why?", "because")])
    config = data_config(tmp_path, f"data.sources.mine.path={source}")
    run = RunDir(tmp_path / "run")
    assert data_of(run, config) is None, "not prepared"
    prepare(config)
    data = data_of(run, config)
    assert data and data["sources"]["mine"].items() >= {"documents": 2, "dropped": 0}.items()
    assert next(text for text, trained in data["sample"] if trained).startswith(("an answer", "because"))
    assert 0 < data["sources"]["mine"]["trained"] < data["sources"]["mine"]["tokens"]


def test_the_results_of_tasks_are_read_in_the_order_of_the_steps(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    assert facts_of(run, data_config(tmp_path))["tasks"] == []
    for task, step in (("b", 10), ("a", 100), ("a", 20)):
        write_result(run, {"task": task, "step": step, "checkpoint": f"step-{step}", "answers": [1], "measures": {}})
    (run.tasks / "c.json").write_text("{")
    found = facts_of(run, data_config(tmp_path))["tasks"]
    assert [(one["task"], one["step"]) for one in found] == [("a", 20), ("a", 100), ("b", 10)]
    assert found[0] == {"task": "a", "step": 20, "checkpoint": "step-20", "measures": {}}


def test_only_settings_without_their_default_are_listed(tmp_path: Path) -> None:
    config = data_config(tmp_path, "data.sources.mine.path=a.jsonl", "data.packing=false")
    found = {one["key"]: one["value"] for one in changed_settings(config)}
    assert found["data.sources.mine.path"] == "a.jsonl" and found["data.packing"] is False
    assert not found.keys() & {"data.sources.mine.hub", "optim.lr", "zero.stage"}


def test_runs_are_reported_and_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = "model.config.num_hidden_layers=1"
    runs = [make_run(tmp_path / name, model, state="done", step=4, max_steps=4) for name in ("a", "b")]
    assert main.main(["--price", "3", *(str(run.path) for run in runs)]) == 0
    said = capsys.readouterr().out
    table = [line.split() for line in said.splitlines() if "docs" in line]
    assert [row[1:6] for row in table] == [["done", "docs", "3.0000", "2.5000", "-16.7"]] * 2 and said.count(
        "report.html"
    ) == 2
    page, pages = (runs[0].report / "report.html").read_text(), (runs[0].report / "compare.html").read_text()
    assert "<h1>mine</h1>" in page and 'href="../../b/report/report.html"' in pages and ">docs<" in pages
    both = json.loads((runs[0].report / "compare.json").read_text())
    assert [one["name"] for one in both["runs"]] == ["a", "b"] and "| b | done | docs | 3.0000 |" in (
        runs[0].report / "compare.md").read_text()  # fmt: skip
    text = (runs[0].report / "report.md").read_text()
    assert "held-out loss of docs went from 3.0000 to 2.5000 (-16.7 %)" in text
    assert "| 4 | 0.2500 | 0.0100 |" in text
    assert "rolled back from step 8" in text and "ftdist train experiment=demo" in text
    report = json.loads((runs[0].report / "report.json").read_text())
    assert report["moved"] is None and report["cost"]["price"] == 0 and report["train"][-1] == [4, "nan"]
