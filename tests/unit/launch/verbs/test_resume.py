"""The verb ``resume``."""

import os
import platform
import shlex
from pathlib import Path
from typing import Dict, List, Optional, Tuple

import pytest

from ftdist.base.errors import EXIT_DONE, EXIT_FAILED, EXIT_USAGE, ConfigError, FtdistError
from ftdist.base.json_files import read_json, write_json
from ftdist.config.frozen import dump_config, load_config, parse_config
from ftdist.config.launch import LaunchKind
from ftdist.config.optim import OptimizerKind
from ftdist.config.resumable import check_changes, config_hash
from ftdist.config.schema import RunConfig
from ftdist.launch import cli
from ftdist.launch.verbs import resume, under_torchrun
from ftdist.run.rundir import MANIFEST, RunDir, manifest_text
from tests.unit.launch.run_tools import make_run, stopped_run

pytestmark = pytest.mark.usefixtures("here")


@pytest.mark.parametrize(("rank", "lines"), [(None, 1), ("0", 1), ("1", 0)])
def test_a_resume_of_a_finished_run_says_so_and_succeeds(
    rank: Optional[str], lines: int, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Then a loop ends that repeats ``ftdist resume`` until it succeeds. Under torchrun only rank 0 prints."""
    make_run(here / "it's done", state="done")
    if rank is not None:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
        monkeypatch.setenv("RANK", rank)
    assert cli.dispatch(["resume", "it's done"]) == EXIT_DONE
    printed = capsys.readouterr().out
    assert printed.count("it's done is done") == printed.count("\n") == lines
    if lines:
        assert shlex.split(printed.split("ftdist train")[1])[-1] == "model.path=it's done/export"


def test_resume_refuses_a_run_that_is_under_way_or_missing(here: Path) -> None:
    make_run(here / "busy", state="running", host=platform.node(), pid=os.getpid())
    for path, says, code in (
        ("busy", f"busy is running, started by process {os.getpid()} on ", EXIT_FAILED),
        ("none", "none does not exist", EXIT_USAGE),
    ):
        with pytest.raises(FtdistError, match=says) as error:
            cli.dispatch(["resume", path])
        assert error.value.exit_code == code


def test_a_trial_that_lost_at_a_rung_is_not_started_to_pause_again(here: Path) -> None:
    run = stopped_run(here / "a-sweep" / "003")
    config = load_config(run.config)
    config.sweep.rungs = [4, 8]
    run.config.chmod(0o644)
    run.config.write_text(dump_config(config))
    run.write_status(state="paused", step=4)
    with pytest.raises(ConfigError, match="paused at rung 4 of its sweep") as error:
        cli.dispatch(["resume", "a-sweep/003"])
    assert error.value.fix.endswith("ftdist resume a-sweep/003 sweep.rungs=[]")
    assert run.read_status()["state"] == "paused"


def _resume(run: RunDir, *overrides: str) -> RunConfig:
    config = resume.change_config(run, load_config(run.config), list(overrides))
    assert load_config(run.config) == config
    return config


@pytest.mark.thorough
def test_a_resume_on_other_ranks_writes_the_new_config_and_keeps_the_old_one(here: Path) -> None:
    run = stopped_run(here / "run")
    before = run.config.read_text()
    config = _resume(run, "launch.nproc_per_node=2", "zero.stage=1", "launch.threads_per_rank=3")
    assert (config.launch.nproc_per_node, config.launch.threads_per_rank) == (2, 3)
    assert (config.zero.stage, config.batch.grad_accum_steps, config.batch.global_batch_size) == (1, 6, 12)
    assert not run.config.stat().st_mode & 0o222
    assert (run.path / "run.attempt-0.yaml").read_text() == before
    assert read_json(run.deepspeed)["gradient_accumulation_steps"] == 6
    assert read_json(run.provenance)["resumes"][0]["overrides"][:2] == ["launch.nproc_per_node=2", "zero.stage=1"]
    assert config_hash(config) == config_hash(parse_config(before, "before"))

    _resume(run, "zero.stage=3")  # no attempt was made in between
    assert (run.path / "run.attempt-0.yaml").read_text() == before
    run.write_status(attempt=1)
    third = run.config.read_text()
    assert _resume(run, "launch.nproc_per_node=3").launch.threads_per_rank != 3  # follows from the ranks again
    assert (run.path / "run.attempt-1.yaml").read_text() == third
    assert len(read_json(run.provenance)["resumes"]) == 3
    run.provenance.write_text("{damaged")
    _resume(run, "zero.stage=2")
    assert len(read_json(run.provenance)["resumes"]) == 1, "nothing needs what it said"
    assert not list(run.path.glob(".*"))


@pytest.mark.parametrize(
    ("saved", "updates", "overrides", "allowed"),
    [
        ((4, 1), 5, ["launch.nproc_per_node=2"], False),
        ((4, 1), 5, ["zero.stage=0"], False),
        ((2, 1), 5, ["launch.threads_per_rank=2"], False),  # whatever changed the ranks before
        ((4, 1), 5, ["launch.threads_per_rank=2"], True),
        ((2, 1), 5, ["launch.nproc_per_node=2"], True),
        ((4, 0), 5, ["launch.nproc_per_node=2", "zero.stage=0"], True),  # every rank has whole states
        ((4, 1), 0, ["launch.nproc_per_node=2"], True),
    ],
)
@pytest.mark.thorough
def test_8_bit_states_stay_with_the_ranks_that_saved_them(
    saved: Tuple[int, int], updates: int, overrides: List[str], allowed: bool, here: Path
) -> None:
    run = stopped_run(here / "run")
    config = load_config(run.config)
    config.optim.optimizer, config.zero.stage = OptimizerKind.adamw_8bit, 1
    run.config.chmod(0o644)
    run.config.write_text(dump_config(config))
    (checkpoint := run.checkpoint(5)).mkdir(parents=True)
    manifest = {"world_size": saved[0], "zero_stage": saved[1], "optimizer_step": updates}
    (checkpoint / MANIFEST).write_text(manifest_text(manifest))
    before = run.config.read_text()
    if allowed:
        _resume(run, *overrides)
        return
    with pytest.raises(ConfigError, match="cannot be divided among the ranks in another way") as error:
        _resume(run, *overrides)
    assert error.value.fix == f"launch.nproc_per_node={saved[0]} zero.stage={saved[1]}"
    assert run.config.read_text() == before
    (checkpoint / MANIFEST).write_text("damaged")  # the ranks say so, and look for an older checkpoint
    _resume(run, *overrides)


@pytest.mark.parametrize(
    ("overrides", "offers"),
    [
        (
            ["launch.nproc_per_node=5"],
            r"micro_batch_size × ranks = 1 × 5 = 5[\s\S]* 6 ranks \(launch.nproc_per_node=6\)",
        ),
        (["batch.micro_batch_size=3", "launch.nproc_per_node=2"], None),
        (["batch.micro_batch_size=3", "launch.nproc_per_node=2", "launch.stall_timeout_s=900"], None),
        (["launch.nproc_per_node=6", "launch.wait=true", "launch.max_requeues=3"], None),
        (["batch.micro_batch_size=4"], r"batch.micro_batch_size=3, or 3 ranks"),
        (["launch.nproc_per_node=24"], r"12 ranks"),
        (["optim.lr=1"], r"cannot change 'optim.lr=1'[\s\S]*launch.nproc_per_node, "),
        (["launch.nproc_per_node=6", "launch.stall_timeout_s=9"], None),
        (["batch.global_batch_size=8"], r"cannot change"),
        (["launch.nproc"], r"cannot change"),
    ],
)
@pytest.mark.thorough
def test_a_resume_changes_only_how_a_run_is_computed(here: Path, overrides: List[str], offers: Optional[str]) -> None:
    run = stopped_run(here / "run")
    before = run.config.read_text()
    if offers is None:
        check_changes(overrides)
        assert _resume(run, *overrides).batch.grad_accum_steps == 2
        return
    with pytest.raises(ConfigError, match=offers):
        check_changes(overrides)
        _resume(run, *overrides)
    assert run.config.read_text() == before and not list(run.path.glob("run.*-*.yaml"))


def test_a_resume_with_overrides_renders_the_batch_script_again(here: Path) -> None:
    run = stopped_run(here / "run")
    config = load_config(run.config)
    config.launch.kind, config.launch.nproc_per_node = LaunchKind.slurm, 2
    run.config.unlink()
    run.config.write_text(dump_config(config))
    _resume(run, "launch.nnodes=2", "launch.slurm.partition=night")
    script = run.submit.read_text()
    assert "--nodes=2" in script and "night" in script and str(run.path) in script
    assert read_json(run.deepspeed)["gradient_accumulation_steps"] == 3  # 12 rows on 2 nodes × 2 ranks


def test_a_resume_uses_another_cache(here: Path) -> None:
    """A node may be unable to write the cache with which the run was started. The path becomes absolute."""
    run = stopped_run(here / "run")
    before = config_hash(load_config(run.config))
    check_changes(["cache_dir=other"])
    assert _resume(run, "cache_dir=other").cache_dir == str(here / "other")
    changed = load_config(run.config)
    assert (changed.cache_dir, config_hash(changed)) == (str(here / "other"), before)
    (here / "file").touch()
    with pytest.raises(ConfigError, match="cache_dir=.*file is not a folder"):
        _resume(run, "cache_dir=file")


def _files(run: RunDir) -> Dict[str, bytes]:
    return {str(path): path.read_bytes() for path in run.path.rglob("*") if path.is_file()}


def test_a_dry_run_prints_the_next_job_and_changes_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = stopped_run(here / "my run")
    config = load_config(run.config)
    config.launch.kind, config.launch.nproc_per_node = LaunchKind.slurm, 2
    run.config.unlink()
    run.config.write_text(dump_config(config))
    _resume(run, "launch.slurm.partition=day")
    before = _files(run)
    capsys.readouterr()
    for overrides, holds in (((), "day"), (("launch.nnodes=2", "launch.slurm.partition=night"), "night")):
        assert cli.dispatch(["resume", "my run", *overrides, "--dry-run"]) == EXIT_DONE
        printed = capsys.readouterr().out
        assert f'#SBATCH --partition="{holds}"' in printed and (f"sbatch '{run.submit}'" in printed) == (not overrides)
        assert shlex.split(printed.rsplit("resume it with: ", 1)[1]) == ["ftdist", "resume", "my run", *overrides]
    assert _files(run) == before
    for override, says in (("optim.lr=1", "cannot change"), ("launch.nnodes=5", "launch.nnodes=1 launch.nproc_per_")):
        with pytest.raises(ConfigError, match=says):
            cli.dispatch(["resume", "my run", override, "--dry-run"])


def test_a_dry_run_on_this_machine_prints_the_command_of_the_next_attempt(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = stopped_run(here / "run")
    before = _files(run)
    assert cli.dispatch(["resume", "run", "--dry-run", "launch.nproc_per_node=2"]) == EXIT_DONE
    printed = capsys.readouterr().out
    assert "--nproc-per-node 2" in printed and "--attempt 1" in printed and _files(run) == before


@pytest.mark.parametrize("own_torchrun", [False, True])
def test_a_resume_refuses_a_deepspeed_config_that_was_edited(
    here: Path, monkeypatch: pytest.MonkeyPatch, own_torchrun: bool
) -> None:
    run = stopped_run(here / "run")
    _resume(run, "zero.stage=1")
    settings = read_json(run.deepspeed)
    settings["zero_optimization"]["stage"] = 3
    write_json(run.deepspeed, settings)
    if own_torchrun:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "mine")
        monkeypatch.setenv("RANK", "0")
    with pytest.raises(ConfigError, match="zero_optimization.stage=3, but run.yaml gives 1"):
        cli.dispatch(["resume", str(run.path)])


def test_a_resume_under_torchrun_refuses_overrides(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = stopped_run(here / "run")
    monkeypatch.setattr(under_torchrun, "is_rank", lambda: True)
    with pytest.raises(ConfigError, match="cannot be used under torchrun"):
        cli.dispatch(["resume", str(run.path), "zero.stage=1"])


@pytest.mark.parametrize("own_torchrun", [False, True])
def test_a_resume_names_the_variables_of_wandb_without_an_effect(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], own_torchrun: bool
) -> None:
    run = stopped_run(here / "run")
    _resume(run, "track.wandb=online")
    monkeypatch.setenv("WANDB_DISABLED", "true")
    if own_torchrun:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "mine")
        monkeypatch.setenv("RANK", "0")

    def end(*_: object) -> None:
        raise ConfigError("far enough", "", "")

    monkeypatch.setattr(resume.inputs, "prepare_model", end)
    monkeypatch.setattr(resume.inputs, "prepare_run_data", lambda *_: None)
    monkeypatch.setattr(under_torchrun, "_run_first_rank", end)
    with pytest.raises(ConfigError, match="far enough"):
        cli.dispatch(["resume", str(run.path)])
    assert "note: WANDB_DISABLED=true has no effect, because track.wandb=online is set\n" in capsys.readouterr().out
