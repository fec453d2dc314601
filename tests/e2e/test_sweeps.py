"""Sweeps on this machine: packed, one trial failing, cut and resumed, driven by Optuna and by W&B's agent."""

import math
import os
import re
import sys
from pathlib import Path
from typing import List

import pytest
import yaml

from ftdist.config.schema import load_config
from ftdist.launch.sweeps.folder import SweepDir, objective
from tests.e2e.cli import Done, ftdist, interrupt, kill_tree, start, succeed, wait_until

pytestmark = pytest.mark.timeout(600)

TINY = ("experiment=smoke", "launch.nproc_per_node=1", "launch.trials_at_once=2", "track=disabled",
        "train.precision=fp32", "data.max_seq_len=128", "data.sources.fake.max_documents=100", "train.eval_every=2",
        "train.max_steps=4", "train.checkpoint_every=null", "train.num_samples=0", "train.export=false")  # fmt: skip
"""Trials of seconds, most of which is the start of a rank."""
DIVERGES = ("optim.schedule=constant", "optim.weight_decay=1e3", "train.max_bad_steps=1", "train.max_rollbacks=0")
"""Then a trial with a learning rate of 1e3 fails at step 4: each step makes its weights a million times larger."""
LONG_S = 500.0


def sweep_in(folder: Path) -> SweepDir:
    (path,) = folder.glob("runs/*-sweep")
    return SweepDir(path)


def states(sweep: SweepDir) -> List[str]:
    return [trial.state for trial in sweep.trials()]


def most_at_once(done: Done) -> int:
    """Trials under way at the same time, by the lines that say that one has started or ended."""
    running, most = 0, 0
    for line in done.out.splitlines():
        running += bool(re.match(r"\d{3} starts", line)) - bool(re.match(r"\d{3} (is done|failed|has stopped)", line))
        most = max(most, running)
    return most


def test_optuna_makes_the_held_out_loss_smaller(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="needs the extra: pip install ftdist[sweep]")
    optuna = ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=6", "hydra.sweeper.n_jobs=2",
              "hydra.sweeper.sampler.n_startup_trials=2", "optim.lr=tag(log,interval(1e-6,1e-1))")  # fmt: skip
    done = succeed("train", *TINY, "-m", *optuna, cwd=tmp_path, timeout_s=LONG_S)
    sweep = sweep_in(tmp_path)
    losses = [objective(trial.run) for trial in sweep.trials()]
    assert states(sweep) == ["done"] * 6 and most_at_once(done) == 2
    assert min(losses[2:]) < min(losses[:2]), losses  # what it learnt is better than what it drew blindly
    assert sweep.told() == dict(enumerate(losses))
    assert {load_config(trial.run.config).track.group for trial in sweep.trials()} == {sweep.path.name}
    again = ftdist("resume", sweep.path)
    assert again.code == 2 and "a sweep that has trials left" in again.err


@pytest.mark.slow
def test_six_trials_two_at_a_time(tmp_path: Path) -> None:
    """One fails, and stops no other."""
    words = ("train.max_steps=6", "optim.lr=1e-3,5e-4,1e3,1e-4,2e-4,1e-5")
    done = ftdist("train", *TINY, *DIVERGES, "-m", *words, cwd=tmp_path, timeout_s=LONG_S)
    sweep = sweep_in(tmp_path)
    assert done.code == 1 and states(sweep) == ["done", "done", "failed", "done", "done", "done"], done.text
    assert most_at_once(done) == 2 and objective(sweep.trials()[2].run) == math.inf
    rows = [line.split() for line in succeed("sweep", sweep.path).out.splitlines()[1:]]
    losses = [float(row[0]) for row in rows]
    assert len(rows) == 6 and losses == sorted(losses) and [row[1] for row in rows].count("failed") == 1


def test_a_sweep_with_a_model_that_is_refused_leaves_nothing(tmp_path: Path) -> None:
    done = ftdist("train", *TINY, "-m", "model.config.model_type=llama,bert", cwd=tmp_path)
    assert done.code == 2 and "bert reads text in both directions" in done.err
    assert not list(tmp_path.iterdir())


def test_a_sweep_that_was_cut_goes_on(tmp_path: Path) -> None:
    """The launcher is killed with its processes while trials are under way and others have not started."""
    words = ("train.max_steps=40", "train.checkpoint_every=1", "optim.lr=1e-3,1e3", "seed=1,2")
    process = start("train", *TINY, *DIVERGES, "-m", *words, cwd=tmp_path)
    wait_until(process, lambda: any(tmp_path.glob("runs/*-sweep/00[01]/checkpoints/step-*/manifest.json")))
    kill_tree(process)
    sweep = sweep_in(tmp_path)
    begun = [trial for trial in sweep.trials() if any(trial.run.checkpoints.glob("step-*/manifest.json"))]
    assert begun and len(sweep.trials()) == 4 and states(sweep)[2:] == ["frozen"] * 2
    done = ftdist("resume", sweep.path, timeout_s=LONG_S)
    assert done.code == 1, done.text
    assert states(sweep) == ["done", "done", "failed", "failed"] and most_at_once(done) == 2
    assert "002 failed" in done.out and "error: rank 0" in done.out
    for trial in begun:
        assert "resumed after step" in (trial.run.logs / "launcher.log").read_text()
    first = sweep.trials()[0].run.read_status()
    again = ftdist("resume", sweep.path)
    assert again.code == 1 and sweep.trials()[0].run.read_status() == first
    assert "000 starts" not in again.out and "002 starts" in again.out  # one that failed is tried again
    table = succeed("sweep", sweep.path).out.splitlines()
    assert [line.split()[1] for line in table[1:]] == ["done", "done", "failed", "failed"]


def test_the_program_line_of_wandbs_agent(tmp_path: Path) -> None:
    """The command of docs/sweeps.md as wandb's own code fills it in for a run that the server has proposed."""
    from wandb.sdk.launch.sweeps import utils

    page = (Path(__file__).parents[2] / "docs" / "sweeps.md").read_text()
    asked = yaml.safe_load(page.split("```yaml\n# sweep.yaml\n")[1].split("```")[0])
    proposed = {"args": {"optim.lr": {"value": 0.00031622776601683794}, "optim.schedule": {"value": "cosine"}}}
    filled = {**utils.create_sweep_command_args(proposed), "env": ["/usr/bin/env"]}
    words = [word for part in utils.create_sweep_command(asked["command"])
             for word in (filled[part[2:-1]] if part.startswith("${") else [part])]  # fmt: skip
    assert words[:3] == ["/usr/bin/env", "ftdist", "train"] and set(asked["parameters"]) == set(proposed["args"])
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    tiny = [word for word in TINY if not word.startswith(("experiment", "track"))]
    done = ftdist(*tiny, f"run_dir={tmp_path / 'run'}", command=words, cwd=tmp_path, PATH=path, WANDB_MODE="offline",
                  WANDB_SWEEP_ID="s1", WANDB_RUN_ID="r1")  # fmt: skip
    assert done.code == 0, done.text
    config = load_config(tmp_path / "run" / "run.yaml")
    assert (config.optim.lr, config.track.run_id, config.track.group) == (0.00031622776601683794, "r1", "s1")
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*-r1"))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["ctrl-c", "cancel"])
def test_a_sweep_that_is_stopped_stops_its_trials(how: str, tmp_path: Path) -> None:
    words = ("train.max_steps=5000", "optim.schedule=constant", "optim.lr=1e-3,1e-4,1e-5")
    process = start("train", *TINY, "-m", *words, cwd=tmp_path)
    wait_until(process, lambda: len(list(tmp_path.glob("runs/*-sweep/00[01]/metrics.jsonl"))) == 2)
    sweep = sweep_in(tmp_path)
    if how == "cancel":
        succeed("cancel", sweep.path)
        assert process.wait(60) == 75
    else:
        assert interrupt(process).code == 75
    assert states(sweep) == ["preempted", "preempted", "frozen"]
    assert sweep.read_status()["state"] == "preempted"
