"""The run directory: whole or not at all, never overwritten, without secrets."""

import json
import subprocess
from pathlib import Path

import pytest

from ftdist.base.errors import ConfigError
from ftdist.base.redact import redact_arguments
from ftdist.config.data import SourceConfig
from ftdist.config.frozen import load_config
from ftdist.config.schema import RunConfig
from ftdist.launch.runs import resolve
from ftdist.launch.runs.freeze import confirm_settings, freeze, provenance


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    monkeypatch.chdir(tmp_path)
    config = RunConfig()
    config.model.config, config.model.tokenizer = {"model_type": "llama"}, "bytes"
    config.data.sources["mine"] = SourceConfig(path="x.jsonl")
    config.train.max_steps = 10
    config.launch.device = type(config.launch.device).cpu
    return config


def test_a_frozen_run_holds_config_deepspeed_settings_and_provenance(config: RunConfig) -> None:
    plan = resolve.resolve(config)
    run = freeze(config, plan, ["ftdist", "train"])
    assert sorted(path.name for path in run.path.iterdir()) == [
        "checkpoints", "deepspeed.json", "logs", "provenance.json", "run.yaml", "status.json",
    ]  # fmt: skip
    assert load_config(run.config) == config
    assert run.config.stat().st_mode & 0o222 == 0
    assert json.loads(run.deepspeed.read_text())["zero_optimization"]["stage"] == 2
    assert run.read_status().items() >= {"state": "frozen", "step": 0, "max_steps": 10}.items()
    assert list(run.path.parent.iterdir()) == [run.path]


def test_a_run_is_never_overwritten(config: RunConfig) -> None:
    plan = resolve.resolve(config)
    run = freeze(config, plan)
    before = run.config.read_text()
    with pytest.raises(ConfigError, match="already holds a run"):
        freeze(config, plan)
    assert run.config.read_text() == before and list(run.path.parent.iterdir()) == [run.path]


def test_contradicting_deepspeed_settings_leave_no_run_directory(config: RunConfig, tmp_path: Path) -> None:
    config.zero.deepspeed = {"zero_optimization": {"stage": 3}}
    plan = resolve.resolve(config)
    with pytest.raises(ConfigError, match="stage"):
        freeze(config, plan)
    assert not (tmp_path / "runs").exists()


def test_a_start_confirms_the_frozen_deepspeed_settings(config: RunConfig) -> None:
    run = freeze(config, resolve.resolve(config))
    frozen = run.deepspeed.read_text()
    confirm_settings(run, config)
    assert run.deepspeed.read_text() == frozen
    run.deepspeed.unlink()
    confirm_settings(run, config)
    assert run.deepspeed.read_text() == frozen
    run.deepspeed.write_text(frozen.replace('"stage": 2', '"stage": 3'))
    with pytest.raises(ConfigError, match="zero_optimization.stage=3, but run.yaml gives 2"):
        confirm_settings(run, config)


def test_provenance_holds_the_commit_and_no_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_API_KEY", "very-secret")
    assert provenance(["ftdist"])["git"] is None
    git = ["git", "-c", "user.name=n", "-c", "user.email=e@x"]
    (tmp_path / "a").write_text("1\n")
    for command in (["init", "-q"], ["add", "a"], ["commit", "-qm", "m"]):
        subprocess.run([*git, *command], check=True)
    (tmp_path / "a").write_text("2\n")
    record = provenance(["ftdist", "train", "seed=1"])
    assert len(record["git"]["commit"]) == 40 and "+2" in record["git"]["diff"]
    assert record["command"] == "ftdist train seed=1" and "torch" in record["packages"]
    assert "very-secret" not in json.dumps(record)


@pytest.mark.parametrize(
    ("word", "kept"),
    [
        ("optim.lr=1", "optim.lr=1"),
        ("model.tokenizer=bytes", "model.tokenizer=bytes"),
        ("train.sample_tokens=3", "train.sample_tokens=3"),
        ("model.revision=" + "a" * 40, "model.revision=" + "a" * 40),
        ("+model.config.api_key=abc", "+model.config.api_key=***"),
        ("model.config.hf_token=abc", "model.config.hf_token=***"),
        ("name=hf_abcdefghijklmnopqrstuvwxyz", "name=***"),
        ("data.sources.a.path=https://me:pw@host/x", "data.sources.a.path=https://***@host/x"),
    ],
)
def test_secrets_on_the_command_line_are_not_kept(word: str, kept: str) -> None:
    assert redact_arguments([word]) == [kept]
