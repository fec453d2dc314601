"""Sweeps on this machine: several trials at once, failing trials, kills, Optuna and the W&B agent."""

import math
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any, Dict, List, Set

import psutil
import pytest
import yaml

from ftdist.config.frozen import load_config
from ftdist.config.sweep import SweepConfig
from ftdist.launch.sweeps.objective import objective
from ftdist.run.rundir import RunDir
from tests.helpers.cli import (
    Done,
    ftdist,
    interrupt,
    kill_tree,
    processes_of,
    start,
    succeed,
    wait_until,
    wait_until_gone,
)
from tests.helpers.sweeps import DIVERGES, TRIAL, only_sweep, states
from tests.helpers.wandb_server import SweepServer, serving

pytestmark = pytest.mark.timeout(1200)

LONG_S = 500.0


def most_at_once(done: Done) -> int:
    """Return how many trials ran at the same time, counted from the lines that report their starts and ends."""
    running, most = 0, 0
    for line in done.out.splitlines():
        running += bool(re.match(r"trial \d{3} started", line))
        running -= bool(re.match(r"trial \d{3} (finished|failed|was stopped|paused)", line))
        most = max(most, running)
    return most


def losses_of(run: RunDir) -> List[Dict[str, Any]]:
    """Return the losses and gradient norms of a run, step by step."""
    names = ("step", "train/loss", "train/grad_norm", "eval/heldout/loss")
    return [{name: record[name] for name in names if name in record} for record in run.read_metrics()]


@pytest.mark.slow  # tests/unit/launch/sweeps compares what Optuna proposes
def test_optuna_makes_the_held_out_loss_smaller(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="needs the extra: pip install ftdist[sweep]")
    optuna = ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=4", "hydra.sweeper.n_jobs=2",
              "hydra.sweeper.sampler.n_startup_trials=2", "optim.lr=tag(log,interval(1e-6,1e-1))")  # fmt: skip
    done = succeed("train", *TRIAL, "-m", *optuna, cwd=tmp_path, timeout_s=LONG_S)
    sweep = only_sweep(tmp_path / "runs")
    losses = [objective(trial.run, SweepConfig()) for trial in sweep.trials()]
    assert states(sweep) == ["done"] * 4 and most_at_once(done) == 2
    assert min(losses[2:]) < min(losses[:2]), losses  # what it learned is better than what it drew blindly
    assert sweep.read_objectives() == dict(enumerate(losses))
    assert {load_config(trial.run.config).track.group for trial in sweep.trials()} == {sweep.path.name}
    assert "is done; its trials, best first" in succeed("resume", sweep.path).out


@pytest.mark.slow
def test_the_best_trials_go_on_from_a_rung_as_if_they_had_never_paused(tmp_path: Path) -> None:
    """Two rates with two seeds each. The trial without a pause has an evaluation at every second step, too."""
    one_thread = "launch.threads_per_rank=1"  # sums over several threads may be rounded differently
    words = ("train.max_steps=6", "sweep.rungs=[2]", one_thread, "optim.lr=1e-3,1e-6", "seed=0,1")
    done = succeed("train", *TRIAL, "-m", *words, cwd=tmp_path, timeout_s=LONG_S)
    sweep = only_sweep(tmp_path / "runs")
    assert states(sweep) == ["done", "done", "paused", "paused"] and most_at_once(done) == 2, done.text
    assert (
        "step 2: 2 of 4 trials continue: 000 001" in done.out
        and "trial 003 paused at step 2: held-out loss" in done.out
    )
    best, other = succeed("sweep", sweep.path).out.splitlines()[1:]
    assert "± " in best and best.split()[3:5] == ["2", "done"] and "paused at step 2" in other
    whole = RunDir(tmp_path / "whole")
    alone = ("train.max_steps=6", one_thread, "optim.lr=1e-3", "seed=1", f"run_dir={whole.path}")
    succeed("train", *TRIAL, *alone, cwd=tmp_path)
    assert losses_of(sweep.trials()[1].run) == losses_of(whole)
    assert "is done; its trials, best first" in succeed("resume", sweep.path).out
    refused = ftdist("resume", sweep.trials()[2].run.path)
    assert refused.code == 2 and "paused at rung 2 of its sweep" in refused.err
    succeed("resume", sweep.trials()[2].run.path, "sweep.rungs=[]")
    assert states(sweep) == ["done", "done", "done", "paused"]


@pytest.mark.slow
def test_six_trials_run_two_at_a_time(tmp_path: Path) -> None:
    """A failed trial stops no other."""
    words = ("train.max_steps=6", "optim.lr=1e-3,5e-4,1e3,1e-4,2e-4,1e-5")
    done = ftdist("train", *TRIAL, *DIVERGES, "-m", *words, cwd=tmp_path, timeout_s=LONG_S)
    sweep = only_sweep(tmp_path / "runs")
    assert done.code == 1 and states(sweep) == ["done", "done", "failed", "done", "done", "done"], done.text
    assert most_at_once(done) == 2 and objective(sweep.trials()[2].run, SweepConfig()) == math.inf
    rows = [line.split() for line in succeed("sweep", sweep.path).out.splitlines()[1:]]
    losses = [float(row[0]) for row in rows[:-1]]  # the failed trial is last, whatever its best loss
    assert len(rows) == 6 and losses == sorted(losses) and [row[1] for row in rows] == ["done"] * 5 + ["failed"]


def test_a_sweep_with_a_refused_model_leaves_no_files(tmp_path: Path) -> None:
    done = ftdist("train", *TRIAL, "-m", "model.config.model_type=llama,bert", cwd=tmp_path)
    assert done.code == 2 and "bert reads text in both directions" in done.err
    assert not list(tmp_path.iterdir())


def test_a_killed_sweep_goes_on(tmp_path: Path) -> None:
    """The launcher is killed with its processes while two trials are under way and one has not started."""
    words = ("train.max_steps=40", "train.checkpoint_every=1", "optim.lr=1e-3,1e-4,1e3")
    process = start("train", *TRIAL, *DIVERGES, "-m", *words, cwd=tmp_path)
    wait_until(process, lambda: any(tmp_path.glob("runs/*-sweep/00[01]/checkpoints/step-*/manifest.json")))
    kill_tree(process)
    sweep = only_sweep(tmp_path / "runs")
    begun = [trial for trial in sweep.trials() if any(trial.run.checkpoints.glob("step-*/manifest.json"))]
    assert begun and len(sweep.trials()) == 3 and states(sweep)[2] == "frozen"
    done = ftdist("resume", sweep.path, timeout_s=LONG_S)
    assert done.code == 1, done.text
    assert states(sweep) == ["done", "done", "failed"] and most_at_once(done) == 2
    assert "002 failed" in done.out and "error: rank 0" in done.out
    for trial in begun:
        assert "resumed after step" in (trial.run.logs / "launcher.log").read_text()
    first = sweep.trials()[0].run.read_status()
    again = ftdist("resume", sweep.path)
    assert again.code == 1 and sweep.trials()[0].run.read_status() == first
    assert "trial 000 started" not in again.out and "trial 002 started" in again.out  # a failed trial is tried again
    table = succeed("sweep", sweep.path).out.splitlines()
    assert [line.split()[1] for line in table[1:]] == ["done", "done", "failed"]


def documented_sweep() -> Dict[str, Any]:
    """Return sweep.yaml of docs/sweeps.md."""
    page = (Path(__file__).parents[2] / "docs" / "sweeps.md").read_text()
    return yaml.safe_load(page.split("```yaml\n# sweep.yaml\n")[1].split("```")[0])


@pytest.mark.slow  # the tests of the agent itself are, too
def test_the_documented_command_of_the_wandb_agent_works(tmp_path: Path) -> None:
    """The command of docs/sweeps.md, filled in by wandb's own code for a run that its server has proposed."""
    from wandb.sdk.launch.sweeps import utils

    asked = documented_sweep()
    proposed = {"args": {"optim.lr": {"value": 0.00031622776601683794}, "optim.schedule": {"value": "cosine"}}}
    filled = {**utils.create_sweep_command_args(proposed), "env": ["/usr/bin/env"]}
    words = [word for part in utils.create_sweep_command(asked["command"])
             for word in (filled[part[2:-1]] if part.startswith("${") else [part])]  # fmt: skip
    assert words[:3] == ["/usr/bin/env", "ftdist", "train"] and set(asked["parameters"]) == set(proposed["args"])
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    tiny = [word for word in TRIAL if not word.startswith(("experiment", "track"))]
    done = ftdist(*tiny, f"run_dir={tmp_path / 'run'}", command=words, cwd=tmp_path, PATH=path, WANDB_MODE="offline",
                  WANDB_SWEEP_ID="s1", WANDB_RUN_ID="r1")  # fmt: skip
    assert done.code == 0, done.text
    config = load_config(tmp_path / "run" / "run.yaml")
    assert (config.optim.lr, config.track.run_id, config.track.group) == (0.00031622776601683794, "r1", "s1")
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*-r1"))


ENDLESS = {"train.max_steps": 5000, "optim.schedule": "constant"}
"""Settings of a trial that does not end by itself."""


def tiny_sweep() -> str:
    """Return the documented sweep, with tiny trials on two ranks, as YAML."""
    asked = documented_sweep()
    tiny = [word for word in TRIAL if not word.startswith(("experiment", "track", "launch.nproc", "train.max_steps"))]
    asked["command"] += [*tiny, "track=offline", "launch.nproc_per_node=2"]
    return yaml.safe_dump(asked)


def proposal(run_dir: Path, **args: Any) -> Dict[str, Any]:
    """Return the command of the server to run a trial."""
    words = {"runs_dir": str(run_dir.parent), "run_dir": str(run_dir), "optim.lr": 1e-3, **args}
    return {"type": "run", "run_id": run_dir.name, "program": "ftdist",
            "args": {key: {"value": value} for key, value in words.items()}}  # fmt: skip


def run_agent(server: SweepServer, folder: Path) -> Done:
    """Run W&B's agent with a server until it ends."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    with serving(server):
        return ftdist("me/ftdist/s1", command=[sys.executable, "-m", "wandb", "agent"], cwd=folder, PATH=path,
                      WANDB_BASE_URL=server.url, WANDB_API_KEY="0" * 40, HOME=str(folder),
                      WANDB_AGENT_MAX_INITIAL_FAILURES="1", timeout_s=LONG_S)  # fmt: skip


@pytest.mark.slow  # the agent asks its server every 5 s
def test_wandbs_agent_runs_trials_and_ends_one_early(tmp_path: Path) -> None:
    """The agent itself, with a stand-in of its server: one trial on two ranks is finished, another one is stopped."""
    ended: Set[str] = set()

    def commands(running: Dict[str, bool]) -> List[Dict[str, Any]]:
        if not ended:
            ended.add("started")
            return [proposal(tmp_path / "short", **{"train.max_steps": 4})]
        if running:
            step = RunDir(tmp_path / "long").read_status().get("step", 0)
            return [{"type": "stop", "run_id": "long"}] if "long" in running and step >= 5 else []
        if "long" in ended:
            return [{"type": "exit"}]
        ended.add("long")
        return [proposal(tmp_path / "long", **ENDLESS)]

    server = SweepServer("s1", tiny_sweep(), commands)
    done = run_agent(server, tmp_path)
    short, long = RunDir(tmp_path / "short"), RunDir(tmp_path / "long")
    assert done.code == 0 and "failed runs" not in done.text, done.text + str(server.unknown)
    assert (short.read_status()["state"], short.read_status()["step"]) == ("done", 4), done.text
    status = long.read_status()
    assert status["state"] == "preempted" and status["last_checkpoint_step"] == status["step"] < 5000
    for run in (short, long):
        config = load_config(run.config)
        assert (config.track.run_id, config.track.group) == (run.path.name, "s1")
        assert len(list(run.logs.glob("rank-*.log"))) == 2 and list(run.wandb.glob(f"offline-run-*-{run.path.name}"))
        assert not processes_of(run)


@pytest.mark.slow
def test_a_trial_is_saved_and_stopped_when_its_agent_is_killed(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "long")

    def commands(running: Dict[str, bool]) -> List[Dict[str, Any]]:
        if running and run.read_status().get("step", 0) >= 5:
            (agent,) = [child for child in psutil.Process().children() if "agent" in child.cmdline()]
            agent.kill()
        return [] if running or run.config.exists() else [proposal(run.path, **ENDLESS)]

    done = run_agent(SweepServer("s1", tiny_sweep(), commands), tmp_path)  # until the trial has closed its output, too
    status = run.read_status()
    assert done.code == -signal.SIGKILL and status["state"] == "preempted", done.text
    assert status["last_checkpoint_step"] == status["step"] < 5000
    wait_until_gone(run)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["ctrl-c", "cancel"])
def test_a_sweep_that_is_stopped_stops_its_trials(how: str, tmp_path: Path) -> None:
    words = ("train.max_steps=5000", "optim.schedule=constant", "optim.lr=1e-3,1e-4,1e-5")
    process = start("train", *TRIAL, "-m", *words, cwd=tmp_path)
    wait_until(process, lambda: len(list(tmp_path.glob("runs/*-sweep/00[01]/metrics.jsonl"))) == 2)
    sweep = only_sweep(tmp_path / "runs")
    if how == "cancel":
        succeed("cancel", sweep.path)
        assert process.wait(60) == 75
    else:
        assert interrupt(process).code == 75
    assert states(sweep) == ["preempted", "preempted", "frozen"]
    assert sweep.read_status()["state"] == "preempted"
