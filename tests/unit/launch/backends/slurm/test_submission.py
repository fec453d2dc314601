"""What a failed submission says: the command that submits the run again, with the setting that sbatch refuses."""

import os
import shlex
from pathlib import Path

import pytest

from ftdist.base.errors import LaunchError
from ftdist.launch.backends.slurm import submission
from tests.unit.launch.backends.slurm.test_client import answer


def test_a_script_is_submitted_by_hand_without_the_variables_that_replace_its_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("SBATCH_")]:
        monkeypatch.delenv(name)
    script = tmp_path / "my run" / "submit.sbatch"
    assert shlex.split(submission.submit_command(script)) == ["sbatch", str(script)]
    monkeypatch.setenv("SBATCH_PARTITION", "gpu")
    assert shlex.split(submission.submit_command(script)) == ["env", "-u", "SBATCH_PARTITION", "sbatch", str(script)]


RUN, SWEEP = Path("/my runs/a/submit.sbatch"), Path("/my runs/a/array-000.sbatch")
FAILED = "Batch job submission failed: "
CHANGE = "change the options of the job in launch.slurm"


@pytest.mark.parametrize(
    ("said", "fix"),
    [
        (f"invalid partition specified: x\nsbatch: error: {FAILED}Invalid partition name specified",
         "launch.slurm.partition=NAME (sinfo"),
        (f"{FAILED}Invalid account or account/partition combination specified", "launch.slurm.account=NAME (`sacctmgr"),
        (f"{FAILED}Invalid qos specification", "launch.slurm.qos=NAME (`sacctmgr"),
        (f"{FAILED}Requested time limit is invalid (missing or exceeds some limit)",
         "launch.slurm.time=HH:MM:SS (sinfo"),
        (f"{FAILED}Invalid feature specification", "launch.slurm.constraint=FEATURE (`sinfo"),
        (f"{FAILED}Requested node configuration is not available", "change launch.nnodes"),
        (f"{FAILED}Invalid generic resource (gres) specification", "change launch.nnodes"),
        (f"{FAILED}Invalid license specification", CHANGE),
    ],
)  # fmt: skip
def test_a_job_that_sbatch_refuses_names_the_setting(said: str, fix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run can be resumed with another value. A sweep keeps its settings."""
    answer(monkeypatch, 1, "", f"sbatch: error: {said}\n")
    monkeypatch.setattr(submission, "jobs_of", lambda script: set())
    for script in (RUN, SWEEP):
        with pytest.raises(LaunchError) as error:
            submission.sbatch(script)
        resume = "ftdist resume '/my runs/a'"
        assert error.value.found.startswith("sbatch: ")
        if script == SWEEP:
            assert error.value.fix.startswith(fix) and resume not in error.value.fix
        elif fix.startswith("launch."):
            assert error.value.fix.startswith(f"{resume} {fix}")
        else:
            assert error.value.fix.startswith(fix) and error.value.fix.endswith(f": {resume} KEY=VALUE")


@pytest.mark.parametrize("script", [RUN, SWEEP])
def test_a_slurm_that_does_not_answer_is_asked_again_by_resume(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, 1, "", f"sbatch: error: {FAILED}Unable to contact slurm controller\n")
    with pytest.raises(LaunchError) as error:
        submission.sbatch(script)
    assert error.value.fix == "ftdist resume '/my runs/a' when `scontrol ping` shows that Slurm is up"
