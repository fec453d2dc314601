"""A sweep through the command line: its runs, its index, one that cannot start, and a stop."""

import json
from pathlib import Path

from ftdist.errors import EXIT_PREEMPTED, EXIT_USAGE
from ftdist.rundir import RunDir
from tests.e2e.cli import SMOKE, ftdist, interrupt, newest_step, start, wait_until


def index_of(folder: Path) -> list:
    (index,) = folder.glob("runs/*-sweep/index.jsonl")
    return [json.loads(line) for line in index.read_text().splitlines()]


def test_runs_and_an_index(tmp_path: Path) -> None:
    """One that cannot start does not stop the others; its exit code is the sweep's."""
    done = ftdist("train", *SMOKE, "--dry-run", "-m", "data.chat_template=chatml,nothere", "seed=1,2", cwd=tmp_path)
    assert done.code == EXIT_USAGE and done.text.count("error: data.chat_template=nothere") == 2
    lines = index_of(tmp_path)
    assert [line["exit_code"] for line in lines] == [0, 0, EXIT_USAGE, EXIT_USAGE]
    assert [line["overrides"][-2:] for line in lines][:2] == [
        ["data.chat_template=chatml", "seed=1"], ["data.chat_template=chatml", "seed=2"]
    ]  # fmt: skip
    runs = [RunDir(line["run_dir"]) for line in lines]
    assert [run.read_status().get("state") for run in runs] == ["frozen", "frozen", None, None]
    group = runs[0].path.parent.name
    assert all(f"group: {group}\n" in run.config.read_text() for run in runs[:2])


def test_ctrl_c_stops_the_whole_sweep(tmp_path: Path) -> None:
    long = ("train.max_steps=5000", "optim.schedule=constant", "train.eval_every=null", "track=disabled")
    process = start("train", *SMOKE, *long, "-m", "seed=1,2", cwd=tmp_path)

    def begun() -> bool:
        return any(newest_step(RunDir(path.parent)) >= 1 for path in tmp_path.glob("runs/*-sweep/000/metrics.jsonl"))

    wait_until(process, begun)
    done = interrupt(process)
    assert done.code == EXIT_PREEMPTED, done.text
    (only,) = index_of(tmp_path)
    assert only["exit_code"] == EXIT_PREEMPTED and RunDir(only["run_dir"]).find_checkpoint("last")
