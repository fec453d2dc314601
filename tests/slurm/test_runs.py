"""Runs under a real Slurm, undisturbed or interrupted, end as a local run does."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List, Tuple

import pytest

from ftdist.run.rundir import RunDir
from tests.helpers.cli import finish, processes_of, wait_until_gone
from tests.helpers.ranks import free_port
from tests.helpers.runs import BARE, reference_run, wait_for_step
from tests.slurm.cluster import Cluster

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1800)]

RUN = ("experiment=smoke", *BARE, "launch.device=cpu", "zero=stage2", "train.precision=fp32",
       "batch.global_batch_size=4", "data.max_seq_len=128", "data.sources.fake.max_documents=400",
       "train.eval_every=null", "train.num_samples=0", "train.export=false", "launch.timeout_s=120",
       "launch.threads_per_rank=1")  # fmt: skip
NODES = ("launch=slurm", "launch.nnodes=2", "launch.wait=true")
SLURM = (*NODES, "launch.nproc_per_node=2")
SHORT = ("train.max_steps=12", "train.checkpoint_every=null")
LONG = ("train.max_steps=500", "train.checkpoint_every=50")
"""Long enough for something that takes a minute to happen in the middle."""
MIDDLE = ("train.max_steps=150", "train.checkpoint_every=50")
"""Long enough for something that takes seconds to happen in the middle."""
COMPARED = ("train/loss", "train/grad_norm", "train/lr", "train/tokens_seen", "eval/heldout/loss")


def metrics(run: RunDir) -> List[Dict[str, Any]]:
    return [{key: value for key, value in record.items() if key in ("step", *COMPARED)}
            for record in run.read_metrics()]  # fmt: skip


def undisturbed(settings: Tuple[str, ...], num_ranks: int = 4) -> List[Dict[str, Any]]:
    """Return the metrics of ranks on this machine, without Slurm, that nobody interrupts."""
    return metrics(reference_run(*RUN, *settings, f"launch.nproc_per_node={num_ranks}"))


def test_two_jobs_of_a_run_leave_one_record(slurm: Cluster, tmp_path: Path) -> None:
    """The script of a dry run is submitted by hand, twice."""
    run = RunDir(tmp_path / "run")
    one = ("launch=slurm", "launch.nproc_per_node=1", "launch.slurm.cpus_per_node=1", "--dry-run")
    finish(slurm.ftdist("train", *RUN, *SHORT, *one, f"run_dir={run.path}"))
    jobs = [slurm.run("sbatch", "--parsable", "--begin=now+1", str(run.submit)).strip() for _ in range(2)]
    slurm.wait(lambda: all(slurm.job(job)["JobState"] in ("COMPLETED", "FAILED") for job in jobs), 240, "both jobs")
    status = run.read_status()
    (loser,) = [job for job in jobs if job != status["job_id"]]
    assert (status["state"], status["attempt"]) == ("done", 0), status
    assert [slurm.job(job)["ExitCode"] for job in (status["job_id"], loser)] == ["0:0", "1:0"]
    assert f"is in use by job {status['job_id']}" in run.job_log(loser).read_text()
    assert [r["step"] for r in run.read_metrics() if "train/loss" in r] == list(range(1, 13))


TASKS = ("srun", "--nodes=2", "--ntasks-per-node=2", sys.executable, "-m", "ftdist")


@pytest.mark.slow
def test_tasks_of_srun_save_before_the_time_limit_and_resume(slurm: Cluster, tmp_path: Path) -> None:
    """Slurm sends SIGUSR2 to every process of the tasks, as it does with ``--signal=USR2@300``."""
    run = RunDir(tmp_path / "run")
    first = subprocess.Popen([*TASKS, "train", *RUN, *MIDDLE, f"run_dir={run.path}"], env=slurm.env, text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
    wait_for_step(run, 20)
    slurm.run("scancel", "--signal=USR2", *slurm.run("squeue", "-h", "-o", "%A").split())
    said, _ = first.communicate(timeout=900)
    status = run.read_status()
    assert (first.returncode, status["state"]) == (75, "preempted"), said
    assert status["last_checkpoint_step"] == status["step"] < 250
    finish(subprocess.Popen([*TASKS, "resume", str(run.path)], env=slurm.env, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT))  # fmt: skip
    assert run.read_status()["attempt"] == 1 and metrics(run) == undisturbed(MIDDLE)


def test_one_task_of_srun_for_each_rank_gives_the_same_losses(slurm: Cluster, tmp_path: Path) -> None:
    """The second time the folder is taken: the task of rank 0 says so, and the others end, too."""
    run = RunDir(tmp_path / "run")
    tasks = [*TASKS, "train", *RUN, *SHORT, f"run_dir={run.path}"]
    done, again = (subprocess.run(tasks, env=slurm.env, capture_output=True, text=True, timeout=900) for _ in range(2))
    assert done.returncode == 0 and done.stdout.count("step 12/12") == 1, done.stderr
    assert metrics(run) == undisturbed(SHORT) and run.read_status()["state"] == "done"
    assert len(list(run.logs.glob("rank-*.attempt-0.log"))) == 4
    assert again.returncode != 0 and again.stderr.count("already holds a run") == again.stderr.count("error: /") == 1


@pytest.mark.slow
def test_a_node_whose_ranks_are_ended_while_they_start_leads_to_a_requeue(slurm: Cluster, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    job = slurm.ftdist("train", *RUN, *SHORT, *SLURM, f"run_dir={run.path}")

    def torchruns() -> List[int]:
        return [p.pid for p in processes_of(run) if "torch.distributed.run" in p.cmdline() and p.name() != "srun"]

    slurm.wait(lambda: len(torchruns()) >= 2, 120, "torchrun on both nodes")
    os.kill(torchruns()[-1], signal.SIGTERM)
    output = finish(job)
    status = run.read_status()
    assert (status["state"], status["attempt"], status["requeues"]) == ("done", 1, 1), output
    assert metrics(run) == undisturbed(SHORT)


def through_deepspeed(tmp_path: Path) -> List[str]:
    """Return overrides for DeepSpeed's launcher with its Slurm runner, instead of a batch job."""
    hosts = tmp_path / "hosts"
    hosts.write_text("node1 slots=1\nnode2 slots=1\n")
    return ["launch=deepspeed", f"launch.deepspeed.hostfile={hosts}", "launch.deepspeed.runner=slurm",
            "launch.deepspeed.options=['--partition=urgent']", f"launch.nodes.port={free_port()}"]  # fmt: skip


@pytest.mark.slow  # tests/nodes starts DeepSpeed's launcher without Slurm
def test_deepspeeds_launcher_gives_the_same_losses(slurm: Cluster, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    job = slurm.ftdist("train", *RUN, *SHORT, *through_deepspeed(tmp_path), f"run_dir={run.path}")
    slurm.wait(lambda: job.poll() is not None or slurm.run("squeue", "-h"), 120, "the job")
    assert slurm.run("squeue", "-h", "-o", "%P %D %N").split() == ["urgent", "2", "node[1-2]"], finish(job)
    assert "step 12/12" in finish(job) and metrics(run) == undisturbed(SHORT, 2)


def test_a_preempted_run_on_two_nodes_gives_the_losses_of_one_node(slurm: Cluster, tmp_path: Path) -> None:
    """Also on a site whose wrappers print a banner before what Slurm's commands print, and whose names of nodes do not
    resolve on the nodes."""
    run, steps = RunDir(tmp_path / "run"), ("train.max_steps=100", "train.checkpoint_every=50")
    (tmp_path / "bin").mkdir()
    with slurm.wrapped(tmp_path / "bin"), slurm.without_names():
        waiting = slurm.ftdist("train", *RUN, *steps, *NODES, "launch.nproc_per_node=1", f"run_dir={run.path}")
        wait_for_step(run, 10)
        slurm.run("sbatch", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
        output = finish(waiting)
    assert "submitted job" in output and "step 100/100" in output
    assert [record["step"] for record in metrics(run)] == [0, *range(1, 101), 100]
    assert metrics(run) == undisturbed(steps, 2)
    status = run.read_status()
    assert (status["state"], status["exit_code"], status["attempt"], status["requeues"]) == ("done", 0, 1, 1)
    job = slurm.job(status["job_id"])
    assert (job["JobState"], job["Restarts"], job["CPUs/Task"]) == ("COMPLETED", "1", "2")
    assert job["Comment"].startswith("ftdist:")
    assert "and 1 thread for each rank" in (run.logs / "node-1.attempt-0.log").read_text()
    logs = {path.name for path in run.logs.glob("rank-*.log")}
    assert logs == {f"rank-0000{rank}.attempt-{attempt}.log" for rank in range(2) for attempt in range(2)}
    assert "Traceback" not in run.job_log(status["job_id"]).read_text()


@pytest.mark.slow
def test_a_run_stops_after_max_requeues(slurm: Cluster, tmp_path: Path) -> None:
    """Slurm requeues the job a second time, and the run does not begin again."""
    run = RunDir(tmp_path / "run")
    job = slurm.ftdist("train", *RUN, *SLURM, "train.max_steps=5000", "optim.schedule=constant",
                 "launch.max_requeues=1", f"run_dir={run.path}")  # fmt: skip
    for attempt in range(2):
        slurm.wait(lambda attempt=attempt: run.read_status().get("attempt") == attempt, 120, "the attempt")
        wait_for_step(run, int(run.read_status().get("step", 0)) + 5)
        slurm.run("sbatch", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
    finish(job, 75)
    status = run.read_status()
    assert (status["state"], status["attempt"]) == ("preempted", 1) and "max_requeues=1" in status["exit_reason"]
    assert slurm.job(status["job_id"])["Restarts"] == "2" and status["last_checkpoint_step"] == status["step"]


@pytest.mark.slow
def test_a_run_is_requeued_at_its_time_limit(slurm: Cluster, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    limits = ("launch.slurm.time=60", "launch.slurm.stop_before_limit_s=60")
    job = slurm.ftdist("train", *RUN, *LONG, *SLURM, *limits, f"run_dir={run.path}")
    wait_for_step(run, 5)
    number = run.read_status()["job_id"]
    slurm.run("scontrol", "update", f"JobId={number}", "EndTime=now+61")  # Slurm checks limits every 30 s
    output = finish(job)
    assert metrics(run) == undisturbed(LONG)
    status = run.read_status()
    assert status["state"] == "done" and status["attempt"] == status["requeues"] >= 1, output
    assert f"attempt 1 of job {number} on {status['nodes']}, after: near the time limit" in output
    assert slurm.job(number)["Restarts"] == str(status["requeues"])


@pytest.mark.slow
def test_a_run_stops_when_a_save_may_no_longer_fit_before_the_time_limit(slurm: Cluster, tmp_path: Path) -> None:
    """Slurm's own signal would come too late: one second before the limit. The comment of the job says how far it is,
    and a comment of the user is kept."""
    run = RunDir(tmp_path / "run")
    limits = ("launch.slurm.time=60", "launch.slurm.stop_before_limit_s=1")
    job = slurm.ftdist("train", *RUN, *MIDDLE, *SLURM, *limits, f"run_dir={run.path}")
    wait_for_step(run, 15)
    number = run.read_status()["job_id"]
    slurm.run("scontrol", "update", f"JobId={number}", "EndTime=now+40")
    asking = slurm.ftdist("_report_job", str(run.path), "--job", number, "--every", "0.2")
    slurm.wait(lambda: "ftdist: step" in slurm.run("squeue", "-h", "-j", number, "-o", "%k"), 20, "the comment")
    slurm.run("scontrol", "update", f"JobId={number}", "Comment=mine")
    slurm.wait(lambda: run.read_status().get("attempt") == 1, 120, "the second attempt")
    asking.kill()
    asking.communicate()
    assert slurm.run("squeue", "-h", "-j", number, "-o", "%k").strip() == "mine"
    output = finish(job)
    assert "stopping: the job ends in" in output and "after: near the time limit" in output, output
    assert metrics(run) == undisturbed(MIDDLE) and run.read_status()["save_s"] > 0


@pytest.mark.slow
def test_a_run_is_submitted_again_if_requeueing_is_not_allowed(slurm: Cluster, tmp_path: Path) -> None:
    """Also if a wrapper of sbatch prints another number and fails after the submission."""
    run = RunDir(tmp_path / "run")
    one = ("launch=slurm", "launch.nproc_per_node=2", "launch.wait=true", "train.max_steps=200")
    (tmp_path / "bin").mkdir()
    with slurm.wrapped(tmp_path / "bin", 'echo 17; "$real" "$@"; exit 3'):
        job = slurm.ftdist("train", *RUN, *one, "train.checkpoint_every=50", f"run_dir={run.path}")
    wait_for_step(run, 5)
    first = run.read_status()["job_id"]
    slurm.run("scontrol", "update", f"JobId={first}", "Requeue=0")
    run.preempt.touch()
    output = finish(job)
    status = run.read_status()
    assert (status["state"], status["attempt"], status["requeues"]) == ("done", 1, 1), output
    assert status["job_id"] != first and slurm.job(first)["Restarts"] == "0"
    assert f"so the run continues in another one: job {status['job_id']}" in output
    assert "requeued (scontrol: Requested operation is" in output and "\nRequested operation" not in output
    assert [r["step"] for r in metrics(run) if "train/loss" in r] == list(range(1, 201))


@pytest.mark.slow
@pytest.mark.parametrize("power_off", [False, True], ids=["slurmd is killed", "power is off"])
def test_a_lost_node_costs_the_steps_since_the_last_checkpoint(power_off: bool, slurm: Cluster, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    job = slurm.ftdist("train", *RUN, *LONG, *SLURM, f"run_dir={run.path}")
    wait_for_step(run, 60)
    slurm.kill_node("node2", power_off)
    number = run.read_status()["job_id"]
    try:
        if power_off:  # Slurm notices by itself
            slurm.wait(lambda: slurm.job(number)["Restarts"] == "1", 120, "the loss of the node")
        else:
            slurm.run("scontrol", "update", "NodeName=node2", "State=DOWN", "Reason=test")
            slurm.wait(lambda: "DOWN" in slurm.run("scontrol", "show", "node", "node2"), 30, "the node down")
    finally:
        slurm.start_node("node2")
        resume = ["scontrol", "update", "NodeName=node2", "State=RESUME"]
        subprocess.run(resume, env=slurm.env, capture_output=True)  # refused if the node has come back by itself
    finish(job)
    assert metrics(run) == undisturbed(LONG)
    # A second restart follows if Slurm finds and ends the job's first start on the node that came back.
    assert run.read_status()["attempt"] >= 1 and int(slurm.job(number)["Restarts"]) >= 1


HOWS = ("scancel", "ctrl-c", "sigterm", "cancel", "cancel --now")


@pytest.mark.parametrize("how", [pytest.param(how, marks=[] if how == "ctrl-c" else pytest.mark.slow) for how in HOWS])
def test_a_stopped_job_leaves_no_process(how: str, slurm: Cluster, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    steps = ("train.max_steps=5000", "optim.schedule=constant", "launch.nproc_per_node=1")
    job = slurm.ftdist("train", *RUN, *steps, *NODES, f"run_dir={run.path}")
    wait_for_step(run, 10)
    number = run.read_status()["job_id"]
    assert len(processes_of(run)) >= 4
    if how == "scancel":
        slurm.run("scancel", number)
    elif how.startswith("cancel"):
        finish(slurm.ftdist(*how.split(), str(run.path)))
    else:
        job.send_signal(signal.SIGINT if how == "ctrl-c" else signal.SIGTERM)
    wait_until_gone(run)
    finish(job, 75)
    status = run.read_status()
    assert status["state"] == "preempted" and status["exit_reason"], status
    assert slurm.job(number)["JobState"] in ("FAILED", "CANCELLED")  # the exit code of the job is 75
    if how == "ctrl-c":
        assert status["last_checkpoint_step"] == status["step"]
        resumed = slurm.ftdist("resume", str(run.path))
        wait_for_step(run, status["step"] + 5)
        finish(slurm.ftdist("cancel", str(run.path)))
        finish(resumed, 75)


@pytest.mark.slow
def test_a_killed_launcher_that_waits_ends_the_job(slurm: Cluster, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    launcher = slurm.ftdist("train", *RUN, *SLURM, "train.max_steps=5000", "optim.schedule=constant",
                      f"run_dir={run.path}")  # fmt: skip
    wait_for_step(run, 5)
    launcher.kill()
    launcher.communicate()
    wait_until_gone(run)
    status = run.read_status()
    assert (status["state"], status["last_checkpoint_step"]) == ("preempted", status["step"]), status
    resumed = slurm.ftdist("resume", str(run.path))
    wait_for_step(run, status["step"] + 5)
    resumed.send_signal(signal.SIGINT)
    finish(resumed, 75)


@pytest.mark.slow
def test_status_logs_and_cancel_of_a_job_without_a_launcher(slurm: Cluster, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    finish(slurm.ftdist("train", *RUN, *SLURM, "launch.wait=false", "train.max_steps=5000", "optim.schedule=constant",
                  f"run_dir={run.path}"))  # fmt: skip
    wait_for_step(run, 5)
    shown = finish(slurm.ftdist("status", str(run.path)))
    assert "running: job" in shown
    with slurm.silent():  # Slurm's controller is restarted
        assert "running" in finish(slurm.ftdist("status", str(run.path)))
    follower = slurm.ftdist("logs", "-f", str(run.path))
    finish(slurm.ftdist("cancel", str(run.path)))
    assert " 1/5000  loss" in finish(follower)
    wait_until_gone(run)
    assert "rank-00001" not in finish(slurm.ftdist("logs", "--rank", "1", str(run.path)))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["ctrl-c", "kill"])
def test_deepspeeds_launcher_ends_with_its_ranks(how: str, slurm: Cluster, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    launcher = slurm.ftdist("train", *RUN, *through_deepspeed(tmp_path), "train.max_steps=5000",
                      "optim.schedule=constant", f"run_dir={run.path}")  # fmt: skip
    wait_for_step(run, 5)
    assert len(processes_of(run)) >= 4
    launcher.send_signal(signal.SIGINT if how == "ctrl-c" else signal.SIGKILL)
    wait_until_gone(run)
    finish(launcher, 75 if how == "ctrl-c" else -signal.SIGKILL)
    status = run.read_status()
    assert (status["state"], status["last_checkpoint_step"]) == ("preempted", status["step"]), status
    assert not slurm.run("squeue", "-h").strip()


def test_a_launcher_killed_while_modules_load_ends_the_job(slurm: Cluster, tmp_path: Path) -> None:
    run, slow = RunDir(tmp_path / "run"), tmp_path / "slow.sh"
    slow.write_text("module() { sleep 4; }\n")
    slurm.env["BASH_ENV"] = str(slow)
    try:
        launcher = slurm.ftdist("train", *RUN, *SLURM, *LONG, "launch.slurm.modules=[cuda]", f"run_dir={run.path}")
    finally:
        del slurm.env["BASH_ENV"]
    slurm.wait(lambda: slurm.run("squeue", "-h", "-t", "RUNNING"), 30, "the job")
    launcher.kill()
    launcher.communicate()
    slurm.wait(lambda: run.read_status()["state"] == "preempted", 30, "the end of the run")
    assert run.read_status()["exit_reason"] == "cancelled before it began"
    wait_until_gone(run, 10)
    assert "attempt 0" not in run.job_log(run.read_status()["job_id"]).read_text()
