"""How a real Slurm reads the batch script: values arrive unchanged, are never executed, and GPUs are requested."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ftdist.run.rundir import RunDir
from tests.slurm.cluster import Cluster

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]

HOSTILE = "a'b\"c $(touch PWNED) `touch PWNED` ; touch PWNED # ünï 東京 ${HOME} \\ % @@ENV@@"
SHOW = """\
#!/bin/bash
@@SBATCH@@
RUN_DIR=@@RUN_DIR@@
@@ENV@@
printf '%s\\n' "$SLURM_JOB_NAME" "$RUN_DIR" "$HOSTILE" >"$RUN_DIR/seen"
"""


def submit(cluster: Cluster, *overrides: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "ftdist", "train", "experiment=smoke", "launch=slurm", *overrides]
    return subprocess.run(command, env=cluster.env, capture_output=True, text=True, timeout=300)


def quoted(value: str) -> str:
    return "'" + value.replace("'", "\\'") + "'"


def test_hostile_values_arrive_unchanged(slurm: Cluster, tmp_path: Path) -> None:
    template = tmp_path / "show.template"
    template.write_text(SHOW)
    # OmegaConf would resolve ${…}, and a slash would start another folder
    value = HOSTILE.replace("${HOME}", "$HOME")
    run = RunDir(tmp_path / re.sub(r"[\\%]", "", value))
    config = tmp_path / "conf" / "launch"
    config.mkdir(parents=True)
    settings = {"env": {"HOSTILE": value}, "options": [f"--comment={value}"], "template": str(template)}
    (config / "hostile.yaml").write_text(json.dumps({"kind": "slurm", "slurm": settings}, ensure_ascii=False))
    done = submit(slurm, "launch=hostile", f"--config-dir={tmp_path / 'conf'}", "launch.device=cpu",
                  f"name={quoted(value)}", f"run_dir={quoted(str(run.path))}")  # fmt: skip
    assert done.returncode == 0, done.stderr
    number = run.read_status()["job_id"]
    slurm.wait(lambda: slurm.job(number)["JobState"] == "COMPLETED", 30, "the job")
    assert (run.path / "seen").read_text().splitlines() == [value, str(run.path), value]
    assert run.job_log(number).is_file() and f"Comment={value}" in slurm.run("scontrol", "show", "job", number)
    assert not list(tmp_path.rglob("PWNED")) and not Path("PWNED").exists()


@pytest.mark.parametrize("key", ["partition", "account", "qos", "constraint", "reservation", "mem"])
def test_a_hostile_identifier_is_never_executed(key: str, slurm: Cluster, tmp_path: Path) -> None:
    value = "x$(touch PWNED);`touch PWNED`\" 'y"
    done = submit(slurm, "launch.device=cpu", f"launch.slurm.{key}={quoted(value)}", f"run_dir={tmp_path / 'run'}")
    if done.returncode != 0:  # without accounting Slurm accepts any account and qos
        assert done.stderr.startswith(("error: sbatch: ", f"error: launch.slurm.{key}="))
        assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("PWNED")) and not Path("PWNED").exists()


def test_nodes_with_different_gpus_are_refused(slurm: Cluster, tmp_path: Path) -> None:
    done = submit(slurm, "batch.global_batch_size=8", "--dry-run", f"run_dir={tmp_path / 'a'}")
    assert done.returncode == 2 and re.search(r"different numbers of GPUs: 2 \(node2\), 4 \(node1\)", done.stderr)
    assert "launch.nproc_per_node=2" in done.stderr and not (tmp_path / "a").exists()
    for number, place in enumerate(("partition=four", "constraint=gpus4")):
        done = submit(slurm, "--dry-run", f"launch.slurm.{place}", f"run_dir={tmp_path}/b{number}")
        assert done.returncode == 0 and '--gpus-per-node="4"' in done.stdout, done.stderr
    done = submit(slurm, "--dry-run", "launch.nproc_per_node=5", f"run_dir={tmp_path / 'c'}")
    assert done.returncode == 2 and "no node that the job can use has more than 4 GPUs" in done.stderr


def test_names_that_slurm_does_not_know_are_refused_by_a_dry_run(slurm: Cluster, tmp_path: Path) -> None:
    for setting, known in (("partition=mian", "four, main, urgent"), ("constraint=gpus3", "gpus2, gpus4")):
        done = submit(slurm, "launch.device=cpu", f"launch.slurm.{setting}", "--dry-run", f"run_dir={tmp_path / 'a'}")
        assert done.returncode == 2 and f"error: launch.slurm.{setting}: " in done.stderr and known in done.stderr
        assert not (tmp_path / "a").exists()


def test_status_logs_cancel_and_resume_of_a_queued_job(slurm: Cluster, tmp_path: Path) -> None:
    """The verbs are not misled by a job name and a comment that look like fields of Slurm's own output."""
    over = "x JobState=COMPLETED"
    run = RunDir(tmp_path / over)

    def verb(*arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "ftdist", *arguments]
        return subprocess.run(command, env=slurm.env, capture_output=True, text=True, timeout=300)

    submit(slurm, "launch.device=cpu", f"launch.slurm.options=[--hold,'--comment={over}']", f"name='{over}'",
           f"run_dir='{run.path}'")  # fmt: skip
    assert "queued: job" in (shown := verb("status", str(run.path)).stdout) and "JobHeldUser" in shown
    assert "has no log" in verb("logs", str(run.path)).stderr
    first = run.read_status()["job_id"]
    again = verb("resume", str(run.path))
    assert again.returncode == 1 and f"is queued as job {first}" in again.stderr
    cancelled = verb("cancel", str(run.path))
    assert (cancelled.returncode, cancelled.stdout) == (
        0,
        f"job {first} was removed from the queue; it had not started\n",
    )
    assert slurm.run("squeue", "-h", "--states=all", "-o", "%T", "-j", first).strip() == "CANCELLED"
    assert run.read_status()["exit_reason"] == "cancelled in the queue"
    assert verb("cancel", str(run.path)).returncode == 2
    assert verb("resume", str(run.path)).returncode == 0
    assert run.read_status()["job_id"] != first and "queued" in verb("status", str(run.path)).stdout
    assert "was removed from the queue" in verb("cancel", "--now", str(run.path)).stdout
    assert "preempted: cancelled in the queue" in verb("status", str(run.path)).stdout


def test_a_sweep_is_an_array_with_one_element_per_trial(slurm: Cluster, tmp_path: Path) -> None:
    held = ("launch.device=cpu", "launch.slurm.options=[--hold]", f"runs_dir={tmp_path}", "-m", "optim.lr=1e-3,1e-4")
    done = submit(slurm, *held)
    assert done.returncode == 0, done.stderr
    (folder,) = tmp_path.glob("*-sweep")
    shown = subprocess.run([sys.executable, "-m", "ftdist", "sweep", str(folder)], env=slurm.env, text=True,
                           capture_output=True, timeout=300).stdout  # fmt: skip
    assert shown.count("queued") == 2 and "optim.lr=0.001" in shown and "experiment" not in shown, shown
    assert len(slurm.run("squeue", "--array", "-h", "-o", "%A").split()) == 2
    said = subprocess.run([sys.executable, "-m", "ftdist", "cancel", "--now", str(folder)], env=slurm.env, text=True,
                          capture_output=True, timeout=300).stdout.splitlines()  # fmt: skip
    assert [line[:15] for line in said] == ["trial 000: job ", "trial 001: job ", "no other trial "]
    assert sum("was removed from the queue" in line for line in said) == 2 and not slurm.run("squeue", "-h").strip()


def test_slurm_variables_of_the_shell_change_nothing(slurm: Cluster, tmp_path: Path) -> None:
    """Neither the user's defaults for Slurm's commands nor variables of an outer job have an effect."""
    run, before = RunDir(tmp_path / "run"), dict(slurm.env)
    slurm.env |= {"SBATCH_PARTITION": "urgent", "SBATCH_ARRAY_INX": "0-2", "SBATCH_TIMELIMIT": "1", "SLURM_NTASKS": "7",
                  "SQUEUE_FORMAT": "x", "SQUEUE_PARTITION": "urgent", "SLURM_CLUSTERS": "none"}  # fmt: skip
    try:
        done = submit(slurm, "launch.device=cpu", "launch.slurm.options=[--hold]", f"run_dir={run.path}")
        assert done.returncode == 0 and "SBATCH_ARRAY_INX" in done.stderr, done.stderr
        shown = subprocess.run([sys.executable, "-m", "ftdist", "status", str(run.path)], env=slurm.env, text=True,
                               capture_output=True, timeout=300).stdout  # fmt: skip
    finally:
        slurm.env = before
    job = slurm.job(run.read_status()["job_id"])
    assert (job["Partition"], job["TimeLimit"], "ArrayJobId" in job) == ("main", "UNLIMITED", False)
    assert "queued: job" in shown


def test_the_message_of_a_refused_submission_is_shown(slurm: Cluster, tmp_path: Path) -> None:
    done = submit(slurm, "launch.device=cpu", "launch.slurm.options=['--nodelist=none']", f"run_dir={tmp_path / 'run'}")
    assert done.returncode == 1 and "Invalid node name specified" in done.stderr
    assert done.stderr.count("\n") <= 3


@pytest.mark.parametrize(
    ("sbatch", "code"),
    [
        pytest.param('"$real" "$@"; echo 17', 0, id="another number is printed"),
        pytest.param('"$real" "$@" >/dev/null', 0, id="the id is not printed"),
        pytest.param('"$real" "$@" >/dev/null; echo "sbatch: error: Socket timed out" >&2; exit 1', 0, id="timeout"),
        pytest.param('"$real" "$@"; echo "cannot write the accounting" >&2; exit 3', 0, id="the wrapper fails"),
        pytest.param("true", 1, id="nothing is submitted"),
    ],
)
def test_a_submission_whose_answer_is_lost_is_found(sbatch: str, code: int, slurm: Cluster, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "a run")
    (tmp_path / "bin").mkdir()
    held = ("launch.device=cpu", "launch.slurm.options=[--hold]", f"run_dir='{run.path}'")
    with slurm.wrapped(tmp_path / "bin", sbatch):
        done = submit(slurm, *held)
        again = subprocess.run([sys.executable, "-m", "ftdist", "resume", str(run.path)], env=slurm.env, text=True,
                               capture_output=True, timeout=300)  # fmt: skip
    assert (done.returncode, run.read_status()["state"]) == (code, "frozen" if code else "queued"), done.stderr
    jobs = slurm.run("squeue", "-h", "-o", "%A").split()
    assert jobs == ([] if code else [run.read_status()["job_id"]]) and again.returncode == 1
    if code:
        assert "squeue shows no job" in done.stderr and "Traceback" not in done.stderr


def test_a_run_has_one_job(slurm: Cluster, tmp_path: Path) -> None:
    """``resume`` does not submit a second one beside a job that was submitted by hand, here by another path."""
    run = RunDir(tmp_path / "run")
    submit(slurm, "launch.device=cpu", "--dry-run", f"run_dir={run.path}")
    (folder := tmp_path / "läufe | a").mkdir()
    (folder / "link").symlink_to(run.path)
    relative = subprocess.run(["sbatch", "--parsable", "--hold", "link/submit.sbatch"], env=slurm.env, cwd=folder,
                              capture_output=True, text=True, check=True)  # fmt: skip
    job = relative.stdout.strip()
    again = subprocess.run([sys.executable, "-m", "ftdist", "resume", str(run.path)], env=slurm.env, text=True,
                           capture_output=True, timeout=300)  # fmt: skip
    assert again.returncode == 1 and f"job {job} of this run is already queued or running" in again.stderr


@pytest.mark.slow
def test_a_run_in_the_shell_of_salloc_says_that_it_does_not_use_the_nodes(slurm: Cluster, tmp_path: Path) -> None:
    """Under srun in the same shell it uses one of them, as asked for."""
    train = [sys.executable, "-m", "ftdist", "train", "experiment=smoke", "track=disabled", "--dry-run"]
    for number, srun in enumerate(([], ["srun", "--nodes=1", "--ntasks=1"])):
        command = ["salloc", "--nodes=2", *srun, *train, f"run_dir={tmp_path}/{number}"]
        done = subprocess.run(command, env=slurm.env, capture_output=True, text=True, timeout=300)
        assert (done.returncode, "has node[1-2], but the run uses" in done.stderr) == (0, not srun), done.stderr
