"""Sweeps under a real Slurm: an array with a throttle, one trial failing, stopped and resumed, driven by Optuna."""

import time
from pathlib import Path
from typing import List

import pytest

from ftdist.launch.sweeps.folder import SweepDir, objective
from tests.e2e.test_sweeps import DIVERGES
from tests.slurm.cluster import Cluster
from tests.slurm.test_runs import finish, ftdist, gone_within

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]

TINY = ("experiment=smoke", "launch=slurm", "launch.device=cpu", "launch.nproc_per_node=1", "launch.wait=true",
        "launch.trials_at_once=2", "track=disabled", "train.precision=fp32", "data.max_seq_len=128",
        "data.sources.fake.max_documents=100", "train.eval_every=2", "train.max_steps=4", "train.checkpoint_every=null",
        "train.num_samples=0", "train.export=false")  # fmt: skip


def most_at_once(cluster: Cluster, sweep: SweepDir) -> int:
    """Elements of the array that ran at the same time, by Slurm's own record."""
    jobs = [cluster.job(trial.run.read_status()["job_id"]) for trial in sweep.trials()]
    spans = [[time.mktime(time.strptime(job[name], "%Y-%m-%dT%H:%M:%S")) for name in ("StartTime", "EndTime")]
             for job in jobs]  # fmt: skip
    return max(sum(begin <= moment < end for begin, end in spans) for moment, _ in spans)


def sweep_in(folder: Path) -> SweepDir:
    (path,) = folder.glob("*-sweep")
    return SweepDir(path)


def states(sweep: SweepDir) -> List[str]:
    return [trial.state for trial in sweep.trials()]


def test_an_array_with_a_throttle(slurm: Cluster, tmp_path: Path) -> None:
    """6 trials, of which one fails and stops no other."""
    words = (f"runs_dir={tmp_path}", "train.max_steps=6", "optim.lr=1e-3,5e-4,1e3,1e-4,2e-4,1e-5")
    output = finish(ftdist(slurm, "train", *TINY, *DIVERGES, "-m", *words), 1)
    sweep = sweep_in(tmp_path)
    assert states(sweep) == ["done", "done", "failed", "done", "done", "done"], output
    assert "trials 0-5" in output and output.count("held-out loss") >= 5
    jobs = [trial.run.read_status()["job_id"] for trial in sweep.trials()]
    assert jobs == [f"{jobs[0].split('_')[0]}_{number}" for number in range(6)]
    assert most_at_once(slurm, sweep) == 2
    assert sweep.read_objectives() == {trial.number: objective(trial.run) for trial in sweep.trials()}


@pytest.mark.slow
@pytest.mark.parametrize("how", ["cancel", "kill"])
def test_a_sweep_that_is_cut_goes_on(how: str, slurm: Cluster, tmp_path: Path) -> None:
    words = (f"runs_dir={tmp_path}", "train.max_steps=400", "train.checkpoint_every=10", "optim.lr=1e-3,1e-4,1e-5")
    process = ftdist(slurm, "train", *TINY, "-m", *words)
    slurm.wait(lambda: len(list(tmp_path.glob("*-sweep/00[01]/checkpoints/step-*"))) >= 2, 240, "two trials")
    sweep = sweep_in(tmp_path)
    if how == "kill":
        process.kill()
        process.communicate()
    else:
        finish(ftdist(slurm, "cancel", str(sweep.path)))
        finish(process, 75)
    assert all(gone_within(trial.run, 15) for trial in sweep.trials())
    slurm.wait(lambda: states(sweep) == ["preempted"] * 3, 20, "the end of all trials")
    output = finish(ftdist(slurm, "resume", str(sweep.path)))
    assert states(sweep) == ["done"] * 3, output
    logs = [trial.run.job_log(trial.run.read_status()["job_id"]).read_text() for trial in sweep.trials()]
    assert "resumed after step" in logs[0] and "resumed after step" in logs[1]


@pytest.mark.slow
def test_a_trial_that_is_submitted_again_is_followed(slurm: Cluster, tmp_path: Path) -> None:
    """Where requeueing is not allowed. The new job is no array, but inherits the variables of one."""
    words = (f"runs_dir={tmp_path}", "train.max_steps=150", "optim.lr=1e-3,1e-4")
    process = ftdist(slurm, "train", *TINY, "-m", *words)
    slurm.wait(lambda: [*tmp_path.glob("*-sweep/001/run.yaml")], 60, "the sweep")
    trial = sweep_in(tmp_path).trials()[1]
    slurm.wait(lambda: trial.run.read_status().get("step", 0) >= 5, 120, "a step of trial 1")
    first = trial.run.read_status()["job_id"]
    slurm.run("scontrol", "update", f"JobId={first}", "Requeue=0")
    trial.run.preempt.touch()
    output = finish(process)
    assert states(sweep_in(tmp_path)) == ["done"] * 2, output
    status = trial.run.read_status()
    assert first.endswith("_1") and "_" not in status["job_id"] and status["requeues"] == 1
    assert trial.run.job_log(status["job_id"]).is_file()


@pytest.mark.slow
def test_optuna(slurm: Cluster, tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="needs the extra: pip install ftdist[sweep]")
    optuna = ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=6", "hydra.sweeper.n_jobs=2",
              "hydra.sweeper.sampler.n_startup_trials=2", "optim.lr=tag(log,interval(1e-6,1e-1))")  # fmt: skip
    finish(ftdist(slurm, "train", *TINY, "-m", f"runs_dir={tmp_path}", *optuna))
    sweep = sweep_in(tmp_path)
    losses = [objective(trial.run) for trial in sweep.trials()]
    assert states(sweep) == ["done"] * 6 and min(losses[2:]) < min(losses[:2]), losses
