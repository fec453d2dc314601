"""Sweeps under a real Slurm: job arrays with a throttle, failing trials, interruptions, Optuna."""

import time
from pathlib import Path

import pytest

from ftdist.config.sweep import SweepConfig
from ftdist.launch.sweeps.folder import SweepDir
from ftdist.launch.sweeps.objective import objective
from tests.helpers.cli import finish, wait_until_gone
from tests.helpers.sweeps import DIVERGES, TRIAL, only_sweep, states
from tests.slurm.cluster import Cluster

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1800)]

TINY = ("launch=slurm", "launch.device=cpu", "launch.wait=true", "launch.threads_per_rank=1", *TRIAL)


def most_at_once(cluster: Cluster, sweep: SweepDir) -> int:
    """Return how many elements of the array ran at the same time, from Slurm's own record."""
    jobs = [cluster.job(trial.run.read_status()["job_id"]) for trial in sweep.trials()]
    spans = [[time.mktime(time.strptime(job[name], "%Y-%m-%dT%H:%M:%S")) for name in ("StartTime", "EndTime")]
             for job in jobs]  # fmt: skip
    return max(sum(begin <= moment < end for begin, end in spans) for moment, _ in spans)


def test_a_throttled_array_goes_on_after_a_failed_trial(slurm: Cluster, tmp_path: Path) -> None:
    """Of 3 trials, one fails and stops no other."""
    words = (f"runs_dir={tmp_path}", "train.max_steps=6", "optim.lr=1e-3,1e3,1e-4")
    output = finish(slurm.ftdist("train", *TINY, *DIVERGES, "-m", *words), 1)
    sweep = only_sweep(tmp_path)
    assert states(sweep) == ["done", "failed", "done"], output
    assert "trials 0-2" in output and output.count("held-out loss") >= 2
    jobs = [trial.run.read_status()["job_id"] for trial in sweep.trials()]
    assert jobs == [f"{jobs[0].split('_')[0]}_{number}" for number in range(3)]
    assert most_at_once(slurm, sweep) == 2
    assert sweep.read_objectives() == {trial.number: objective(trial.run, SweepConfig()) for trial in sweep.trials()}
    shown = finish(slurm.ftdist("resume", str(sweep.path), "--dry-run"))
    assert "1 of 3 trials in" in shown and "array-001.sbatch: trials 1, 1 at a time" in shown and "#SBATCH" in shown
    assert sweep.trials()[1].run.read_status()["job_id"] == jobs[1]


@pytest.mark.slow
def test_each_rung_is_an_array_of_its_own(slurm: Cluster, tmp_path: Path) -> None:
    words = (f"runs_dir={tmp_path}", "train.max_steps=6", "sweep.rungs=[2]", "optim.lr=1e-6,1e-3,1e-7,1e-4")
    output = finish(slurm.ftdist("train", *TINY, "-m", *words))
    sweep = only_sweep(tmp_path)
    assert states(sweep) == ["paused", "done", "paused", "done"], output
    assert "trials 0-3" in output and "trials 1,3" in output and "step 2: 2 of 4 trials continue: 001 003" in output
    for trial in sweep.trials():
        job = slurm.job(trial.run.read_status()["job_id"])
        assert (job["JobState"], job["ExitCode"], job["Restarts"]) == ("COMPLETED", "0:0", "0")
    steps = [record["step"] for record in sweep.trials()[1].run.read_metrics() if "train/loss" in record]
    assert steps == list(range(1, 7))
    refused = slurm.ftdist("train", *TINY, "launch.wait=false", "-m", *words)
    assert "sweep.rungs compares the trials" in finish(refused, 2)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["cancel", "kill"])
def test_an_interrupted_sweep_resumes(how: str, slurm: Cluster, tmp_path: Path) -> None:
    words = (f"runs_dir={tmp_path}", "train.max_steps=200", "train.checkpoint_every=10", "optim.lr=1e-3,1e-4,1e-5")
    process = slurm.ftdist("train", *TINY, "-m", *words)
    slurm.wait(lambda: len(list(tmp_path.glob("*-sweep/00[01]/checkpoints/step-*"))) >= 2, 240, "two trials")
    sweep = only_sweep(tmp_path)
    if how == "kill":
        process.kill()
        process.communicate()
    else:
        finish(slurm.ftdist("cancel", str(sweep.path)))
        finish(process, 75)
    for trial in sweep.trials():
        wait_until_gone(trial.run)
    slurm.wait(lambda: states(sweep) == ["preempted"] * 3, 20, "the end of all trials")
    output = finish(slurm.ftdist("resume", str(sweep.path)))
    assert states(sweep) == ["done"] * 3, output
    logs = [trial.run.job_log(trial.run.read_status()["job_id"]).read_text() for trial in sweep.trials()]
    assert "resumed after step" in logs[0] and "resumed after step" in logs[1]


@pytest.mark.slow
def test_a_trial_that_is_submitted_again_is_followed(slurm: Cluster, tmp_path: Path) -> None:
    """Requeueing is not allowed. The new job is no array, but inherits the variables of one."""
    words = (f"runs_dir={tmp_path}", "train.max_steps=150", "optim.lr=1e-3,1e-4")
    process = slurm.ftdist("train", *TINY, "-m", *words)
    slurm.wait(lambda: [*tmp_path.glob("*-sweep/001/run.yaml")], 60, "the sweep")
    trial = only_sweep(tmp_path).trials()[1]
    slurm.wait(lambda: trial.run.read_status().get("step", 0) >= 5, 120, "a step of trial 1")
    first = trial.run.read_status()["job_id"]
    slurm.run("scontrol", "update", f"JobId={first}", "Requeue=0")
    trial.run.preempt.touch()
    output = finish(process)
    assert states(only_sweep(tmp_path)) == ["done"] * 2, output
    status = trial.run.read_status()
    assert first.endswith("_1") and "_" not in status["job_id"] and status["requeues"] == 1
    assert trial.run.job_log(status["job_id"]).is_file()


@pytest.mark.slow
def test_optuna_makes_the_held_out_loss_smaller(slurm: Cluster, tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="needs the extra: pip install ftdist[sweep]")
    optuna = ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=6", "hydra.sweeper.n_jobs=2",
              "hydra.sweeper.sampler.n_startup_trials=2", "optim.lr=tag(log,interval(1e-6,1e-1))")  # fmt: skip
    finish(slurm.ftdist("train", *TINY, "-m", f"runs_dir={tmp_path}", *optuna))
    sweep = only_sweep(tmp_path)
    losses = [objective(trial.run, SweepConfig()) for trial in sweep.trials()]
    assert states(sweep) == ["done"] * 6 and min(losses[2:]) < min(losses[:2]), losses
