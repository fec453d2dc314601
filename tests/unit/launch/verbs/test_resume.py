"""The verbs around a run: which states are refused, what the table says, sweeps, what is made ready."""

import argparse
import json
import os
import platform
import shlex
import time
from pathlib import Path
from typing import Any, Dict, List, Optional

import psutil
import pytest

from ftdist.base.errors import EXIT_DONE, EXIT_PREEMPTED, ConfigError, LaunchError
from ftdist.base.json_files import read_json
from ftdist.config.resumable import check_changes, config_hash
from ftdist.config.schema import Device, LaunchKind, RunConfig, SourceConfig, dump_config, load_config, parse_config
from ftdist.launch import cli
from ftdist.launch.attempt import failure
from ftdist.launch.config import compose
from ftdist.launch.runs import banner, ready, resolve
from ftdist.launch.runs.liveness import liveness
from ftdist.launch.verbs import resume, under_torchrun
from ftdist.run.model_facts import ModelFacts, write_facts
from ftdist.run.rundir import RunDir

STARTED = psutil.Process().create_time()


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    return tmp_path


def make_run(path: Path, **status: Any) -> RunDir:
    run = RunDir(path)
    run.logs.mkdir(parents=True)
    config = RunConfig()
    config.model.config, config.model.tokenizer = {"model_type": "llama"}, "bytes"
    config.data.sources["mine"] = SourceConfig(builtin="fake")
    config.train.max_steps = 10
    run.config.write_text(dump_config(config))
    run.write_status(**status)
    return run


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ({"state": "done"}, "done"),
        ({"state": "running", "time": time.time(), "host": "elsewhere", "pid": 1}, "running"),
        ({"state": "running", "time": time.time() - 3600, "host": "elsewhere", "pid": 1}, "dead?"),
        ({"state": "running", "time": time.time() + 60, "host": platform.node(), "pid": os.getpid()}, "running"),
        ({"state": "running", "time": STARTED - 3600, "host": platform.node(), "pid": os.getpid()}, "dead?"),
        ({"state": "running", "time": time.time(), "host": platform.node(), "pid": 2**22 + 1}, "dead?"),
        ({}, "?"),
    ],
)
def test_a_run_that_nobody_runs_is_perhaps_dead(status: Dict[str, Any], state: str) -> None:
    assert liveness(status) == state


def test_the_table(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(here / "runs" / "a", state="done", step=6, max_steps=6, loss=1.23456, tokens_per_s=98765.4,
             last_checkpoint_step=6, last_checkpoint_time=time.time() - 7200)  # fmt: skip
    make_run(here / "runs" / "x-sweep" / "000", state="failed", exit_reason="rank 1: out of memory")
    make_run(here / "runs" / "x-sweep" / "001", state="preempted", exit_reason="stopped")
    make_run(here / "runs" / "x-sweep" / "002", state="preempted", exit_reason="near the time limit")
    assert cli.dispatch(["status"]) == EXIT_DONE
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert lines[1].split() == ["runs/a", "done", "6/6", "1.2346", "98,765", "step", "6,", "2", "h", "ago"]
    assert "runs/x-sweep/000" in lines[2] and "failed: rank 1: out of memory" in lines[2]
    assert lines[3].split()[1:3] == ["stopped", "0/?"] and "preempted: near the time limit" in lines[4]


def test_resume_refuses_what_cannot_go_on(here: Path) -> None:
    make_run(here / "done", state="done")
    make_run(here / "busy", state="running", host=platform.node(), pid=os.getpid())
    for path, says in (("done", "done is done"), ("busy", "busy is running"), ("none", "none does not exist")):
        with pytest.raises(ConfigError, match=says):
            cli.dispatch(["resume", path])


def test_what_is_not_there_names_what_is(here: Path) -> None:
    make_run(here / "mine", state="done").log_file(1, 0).touch()
    for words, expected, fix in (
        (["resume", "mime"], "a run directory", "mine"),
        (["status", "mime"], "a run directory, or a folder of them", "ftdist status mine"),
        (["logs", "mine", "--rank", "5"], "--rank with one of 1", "ftdist status mine"),
    ):
        with pytest.raises(ConfigError) as error:
            cli.dispatch(words)
        assert (error.value.expected, error.value.fix) == (expected, fix)


def test_logs_do_not_wait_for_what_never_comes(here: Path) -> None:
    make_run(here / "over", state="done").log_file(0, 0).touch()
    make_run(here / "busy", state="running", host=platform.node(), pid=os.getpid()).log_file(0, 0).touch()
    for place in ("over", "busy"):  # of one rank
        with pytest.raises(ConfigError, match="has no log of rank 99"):
            cli.dispatch(["logs", place, "--rank", "99", "-f"])


def test_a_place_without_runs_is_named_after_the_table_of_the_others(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(here / "mine", state="done")
    with pytest.raises(ConfigError, match="no run in nowhere"):
        cli.dispatch(["status", "mine", "nowhere"])
    assert capsys.readouterr().out.splitlines()[1].split()[:2] == ["mine", "done"]


def test_what_is_printed_to_go_on_can_be_typed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(here / "it's a run", state="preempted")
    banner.show_next(run, EXIT_PREEMPTED, 1.0)
    words = shlex.split(capsys.readouterr().out.split("go on with: ")[1])
    assert words == ["ftdist", "resume", "it's a run"]
    assert shlex.split(failure.explain_failure(run, 0, run.logs / "none", 1).fix) == ["ftdist", "resume", str(run.path)]


def test_eval_names_the_checkpoints_there_are(here: Path) -> None:
    run = make_run(here / "a", state="done")
    run.checkpoint(5).mkdir(parents=True)
    (run.checkpoint(5) / "manifest.json").write_text("{}")
    with pytest.raises(ConfigError, match="no checkpoint '7'") as error:
        cli.dispatch(["eval", "a", "--checkpoint", "7"])
    assert "last, best or a step of: 5" in error.value.expected


@pytest.mark.parametrize(
    ("given", "holds", "says", "fix"),
    [
        ("a", [], "a has no export; the run holds no checkpoint yet", "ftdist resume a"),
        ("a", ["checkpoints"], "a has no export; the run holds checkpoints of step 5, 10", "ftdist export a"),
        ("a/nothere", ["export", "checkpoints"],
         "a/nothere does not exist; the run holds an export and checkpoints of step 5, 10", "ftdist chat a"),
        ("a/checkpoints", ["checkpoints"], "a/checkpoints is not a model", "ftdist export a"),
        ("b", ["export"], "b does not exist", "ftdist status"),
        ("ab", ["export"], "ab does not exist", "ftdist chat a"),
    ],
)  # fmt: skip
def test_chat_with_what_is_no_model(given: str, holds: List[str], says: str, fix: str, here: Path) -> None:
    run = make_run(here / "a", state="preempted")
    if "export" in holds:
        run.export.mkdir()
    for step in (5, 10) if "checkpoints" in holds else ():
        run.checkpoint(step).mkdir(parents=True)
        (run.checkpoint(step) / "manifest.json").write_text("{}")
    with pytest.raises(ConfigError) as error:
        cli.dispatch(["chat", given])
    assert error.value.found.startswith(says) and error.value.fix.startswith(fix)


def smoke(*words: str) -> RunConfig:
    parser = argparse.ArgumentParser()
    compose.add_arguments(parser)
    return compose.compose(parser.parse_args(["experiment=smoke", *words]))


def test_a_cache_hit_starts_no_process(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    config = smoke(f"cache_dir={here}/cache")
    steps: List[str] = []
    monkeypatch.setattr(ready, "run_step", lambda arguments, given=None: steps.append(arguments[0]))
    folder = ready.make_data_ready(config)
    assert steps == ["ftdist.data.main"]
    folder.mkdir(parents=True)
    (folder / "meta.json").write_text("{}")
    ready.make_data_ready(config)
    assert steps == ["ftdist.data.main"]


def test_a_gguf_is_converted_once(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    (here / "m.gguf").write_bytes(b"GGUF")
    config = smoke(f"cache_dir={here}/cache", "model=folder", "model.path=m.gguf", "model.tokenizer=bytes")
    steps: List[List[str]] = []

    def convert(arguments: List[str], given: Optional[RunConfig] = None) -> None:
        steps.append(arguments)
        Path(arguments[-1]).mkdir(parents=True)
        (Path(arguments[-1]) / "config.json").write_text("{}")

    monkeypatch.setattr(ready, "run_step", convert)
    ready.convert_model(config)
    ready.convert_model(config)
    assert len(steps) == 1 and steps[0][:2] == ["ftdist.model.convert", "m.gguf"]


def test_a_model_is_checked_once(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    steps: List[str] = []
    facts = ModelFacts("gpt2", 1234, max_positions=2048, has_position_table=True, recomputes=True)

    def check(arguments: List[str], given: Optional[RunConfig] = None) -> None:
        assert given is not None
        steps.append(arguments[0])
        write_facts(given, facts)

    monkeypatch.setattr(ready, "run_step", check)
    config = smoke(f"cache_dir={here}/cache")
    ready.make_model_ready(config)
    ready.make_model_ready(config)
    assert steps == ["ftdist.model.check"]
    ready.make_model_ready(smoke(f"cache_dir={here}/cache", "optim.lr=3e-3"))
    assert len(steps) == 1, "the same model with other settings"
    config.model.config["hidden_size"] = 128
    ready.make_model_ready(config)
    assert len(steps) == 2, "another model"
    with pytest.raises(ConfigError, match="data.max_seq_len=4,096, but the model was made for 2,048 positions"):
        ready.make_model_ready(smoke(f"cache_dir={here}/cache", "data.max_seq_len=4096"))
    assert len(steps) == 2


def test_the_banner_names_model_and_data_and_warns(
    monkeypatch: pytest.MonkeyPatch, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = smoke(f"cache_dir={here}/cache", "data.max_seq_len=4096", f"run_dir={here}/run")
    plan = resolve.resolve(config)
    banner.show_run(config, plan, here / "nothing")
    said = capsys.readouterr().out
    assert "model      random weights\n" in said and "data       fake\n" in said and "warning" not in said
    write_facts(config, ModelFacts("llama", 1234, max_positions=2048, has_position_table=False, recomputes=True))
    banner.show_run(config, plan, here / "nothing")
    said = capsys.readouterr().out
    assert "model      random weights: llama, 1,234 parameters\n" in said
    assert "warning: data.max_seq_len=4,096, but the model was made for 2,048 positions\n" in said


def test_the_next_commands_can_be_typed_from_here(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for place, status in (("runs/a", "ftdist status"), ("elsewhere/a", "ftdist status elsewhere")):
        run = RunDir(here / place)
        run.path.mkdir(parents=True)
        run.write_status(state="done")
        banner.show_next(run, 0, 3.0)
        commands = capsys.readouterr().out.splitlines()
        assert commands[-1].strip() == status and f"ftdist eval {place} --checkpoint best" in commands[-2]


def test_threads_of_a_step_do_not_spin_while_they_wait(
    here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (here / "shows.py").write_text("import os; print(os.environ['OMP_WAIT_POLICY'])")
    monkeypatch.setenv("PYTHONPATH", str(here))
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    ready.run_step(["shows"])
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    ready.run_step(["shows"])
    assert capfd.readouterr().out.split() == ["PASSIVE", "ACTIVE"]


def test_a_step_that_fails_has_said_why(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ready.StepFailed) as error:
        ready.run_step(["ftdist.data.main", "nonsense", "-"])
    assert error.value.exit_code == 2 and str(error.value) == ""
    assert "nonsense" in capfd.readouterr().err


def test_a_restart_by_torchrun_finds_its_run(here: Path) -> None:
    make_run(here / "runs" / "1", state="running").provenance.write_text(json.dumps({"host": "other", "agent_pid": 1}))
    mine = make_run(here / "runs" / "2", state="running")
    mine.provenance.write_text(json.dumps({"host": platform.node(), "agent_pid": os.getppid()}))
    make_run(here / "runs" / "3", state="running").provenance.write_text(json.dumps({"host": "other", "agent_pid": 1}))
    assert under_torchrun._frozen_before(smoke()).path.name == "2"
    with pytest.raises(LaunchError, match="no run of this torchrun"):
        under_torchrun._frozen_before(smoke("run_dir=runs/1"))


def _frozen(path: Path) -> RunDir:
    """A run that has stopped after its attempt 0, on 4 ranks."""
    run = make_run(path, state="preempted", attempt=0)
    config = load_config(run.config)
    config.launch.device, config.launch.nproc_per_node, config.launch.threads_per_rank = Device.cpu, 4, 1
    config.batch.global_batch_size, config.batch.micro_batch_size, config.batch.grad_accum_steps = 12, 1, 3
    run.config.write_text(dump_config(config))
    run.config.chmod(0o444)
    return run


def _resume(run: RunDir, *overrides: str) -> RunConfig:
    config = resume.change_course(run, load_config(run.config), list(overrides))
    assert load_config(run.config) == config
    return config


def test_a_resume_on_other_ranks_is_written_down(here: Path) -> None:
    run = _frozen(here / "run")
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
    assert not list(run.path.glob(".*"))


@pytest.mark.parametrize(
    ("overrides", "offers"),
    [
        (
            ["launch.nproc_per_node=5"],
            r"cannot be divided over 5 ranks × 1 rows[\s\S]* 6 ranks \(launch.nproc_per_node=6\)",
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
def test_what_a_resume_may_change(here: Path, overrides: List[str], offers: Optional[str]) -> None:
    run = _frozen(here / "run")
    before = run.config.read_text()
    if offers is None:
        check_changes(overrides)
        assert _resume(run, *overrides).batch.grad_accum_steps == 2
        return
    with pytest.raises(ConfigError, match=offers):
        check_changes(overrides)
        _resume(run, *overrides)
    assert run.config.read_text() == before and not list(run.path.glob("run.*-*.yaml"))


def test_eval_refuses_what_would_change_nothing_of_it(here: Path) -> None:
    run = _frozen(here / "run")
    with pytest.raises(ConfigError, match=r"ftdist eval cannot change 'optim\.lr=3'"):
        cli.dispatch(["eval", str(run.path), "data.heldout.mine.path=x.jsonl", "optim.lr=3"])


@pytest.mark.parametrize("under_a_torchrun", [False, True])
def test_a_resume_refuses_a_deepspeed_config_that_was_edited(
    here: Path, monkeypatch: pytest.MonkeyPatch, under_a_torchrun: bool
) -> None:
    run = _frozen(here / "run")
    _resume(run, "zero.stage=1")
    settings = read_json(run.deepspeed)
    settings["zero_optimization"]["stage"] = 3
    run.deepspeed.write_text(json.dumps(settings))
    if under_a_torchrun:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "mine")
        monkeypatch.setenv("RANK", "0")
    with pytest.raises(ConfigError, match="zero_optimization.stage=3, but run.yaml gives 1"):
        cli.dispatch(["resume", str(run.path)])


def test_a_batch_job_is_written_anew(here: Path) -> None:
    run = _frozen(here / "run")
    config = load_config(run.config)
    config.launch.kind, config.launch.nproc_per_node = LaunchKind.slurm, 2
    run.config.unlink()
    run.config.write_text(dump_config(config))
    _resume(run, "launch.nnodes=2", "launch.slurm.partition=night")
    script = run.submit.read_text()
    assert "--nodes=2" in script and "night" in script and str(run.path) in script
    assert read_json(run.deepspeed)["gradient_accumulation_steps"] == 3  # 12 rows on 2 nodes × 2 ranks


def test_a_resume_says_what_it_begins_with(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Never that it begins again where the ranks will refuse to."""
    run = make_run(here / "run", state="failed", max_steps=10)

    def said() -> str:
        banner.show_resume(run)
        return capsys.readouterr().out.strip()

    run.checkpoints.mkdir()
    assert said() == "starting run from its beginning: it has no checkpoint"
    run.checkpoint(4).mkdir()  # it has lost its manifest
    assert said() == "looking for a checkpoint of run that can be trusted"
    run.checkpoint(4).rename(run.checkpoints / "bad-step-00000004")
    assert said() == "looking for a checkpoint of run that can be trusted"
    run.checkpoint(8).mkdir()
    (run.checkpoint(8) / "manifest.json").touch()
    assert said() == "going on with run after step 8 of 10"


def test_under_torchrun_a_resume_changes_nothing(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = _frozen(here / "run")
    monkeypatch.setattr(under_torchrun, "is_parent", lambda: True)
    with pytest.raises(ConfigError, match="under torchrun"):
        cli.dispatch(["resume", str(run.path), "zero.stage=1"])


def test_what_cannot_change_is_what_the_hash_covers() -> None:
    def hashed(**changes: Any) -> str:
        config = RunConfig()
        for key, value in changes.items():
            owner, name = key.split("__")
            setattr(getattr(config, owner), name, value)
        return config_hash(config)

    assert hashed() == hashed(zero__stage=0, launch__nproc_per_node=7, batch__grad_accum_steps=2, track__run_id="x")
    for other in (
        {"optim__lr": 1.0},
        {"batch__global_batch_size": 2},
        {"train__max_steps": 2},
        {"data__packing": False},
    ):
        assert hashed() != hashed(**other)
