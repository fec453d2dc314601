"""Model and data of a run: prepared once, by programs of the data plane."""

import os
from pathlib import Path
from typing import List, Optional

import pytest

from ftdist.base.errors import EXIT_UNREACHABLE, ConfigError, DataError
from ftdist.config.launch import Container, LaunchKind
from ftdist.config.schema import RunConfig
from ftdist.launch.backends.slurm import script
from ftdist.launch.runs import inputs, programs
from ftdist.launch.runs.pipeline import prepare_run
from ftdist.run.model_facts import ModelFacts, write_facts
from ftdist.run.rundir import RunDir
from tests.unit.launch.run_tools import smoke

pytestmark = pytest.mark.usefixtures("here")
FETCHED = ("config.json", "model.safetensors")


def test_prepared_data_in_the_cache_starts_no_process(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    config = smoke(f"cache_dir={here}/cache")
    steps: List[str] = []
    monkeypatch.setattr(inputs, "run_program", lambda arguments, given=None: steps.append(arguments[0]))
    folder = inputs.prepare_data(config)
    assert steps == ["ftdist.data.main"]
    folder.mkdir(parents=True)
    (folder / "meta.json").write_text("{}")
    inputs.prepare_data(config)
    assert steps == ["ftdist.data.main"]


def test_a_gguf_is_converted_once(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    (here / "m.gguf").write_bytes(b"GGUF")
    config = smoke(f"cache_dir={here}/cache", "model=folder", "model.path=m.gguf", "model.tokenizer=bytes")
    steps: List[List[str]] = []

    def convert(arguments: List[str], given: Optional[RunConfig] = None) -> None:
        steps.append(arguments)
        Path(arguments[-1]).mkdir(parents=True)
        (Path(arguments[-1]) / "config.json").write_text("{}")

    monkeypatch.setattr(inputs, "run_program", convert)
    inputs.convert_model(config)
    inputs.convert_model(config)
    assert len(steps) == 1 and steps[0][:2] == ["ftdist.model.convert", "m.gguf"]


def test_a_model_is_checked_once(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    steps: List[str] = []
    facts = ModelFacts("gpt2", 1234, max_positions=2048, has_position_table=True, recomputes=True)

    def check(arguments: List[str], given: Optional[RunConfig] = None) -> None:
        assert given is not None
        steps.append(arguments[0])
        write_facts(given, facts)

    monkeypatch.setattr(inputs, "run_program", check)
    config = smoke(f"cache_dir={here}/cache")
    inputs.prepare_model(config)
    inputs.prepare_model(config)
    assert steps == ["ftdist.method.check"]
    inputs.prepare_model(smoke(f"cache_dir={here}/cache", "optim.lr=3e-3"))
    assert len(steps) == 1, "the same model with other settings"
    config.model.config["hidden_size"] = 128
    inputs.prepare_model(config)
    assert len(steps) == 2, "another model"
    with pytest.raises(ConfigError, match="data.max_seq_len=4,096, but the model was made for 2,048 positions"):
        inputs.prepare_model(smoke(f"cache_dir={here}/cache", "data.max_seq_len=4096"))
    assert len(steps) == 2


def test_threads_of_a_program_do_not_wait_by_spinning(
    here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (here / "shows.py").write_text("import os; print(os.environ['OMP_WAIT_POLICY'])")
    monkeypatch.setenv("PYTHONPATH", str(here))
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    programs.run_program(["shows"])
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    programs.run_program(["shows"])
    assert capfd.readouterr().out.split() == ["PASSIVE", "ACTIVE"]


def test_a_program_that_fails_has_printed_the_reason(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(programs.ProgramFailed) as error:
        programs.run_program(["ftdist.data.main", "nonsense", "-"])
    assert error.value.exit_code == 2 and str(error.value) == ""
    assert "nonsense" in capfd.readouterr().err


def test_a_cache_that_cannot_be_written_is_named_only_if_something_is_missing(
    monkeypatch: pytest.MonkeyPatch, here: Path
) -> None:
    """As on compute nodes with a read-only home."""
    config = smoke(f"cache_dir={here}/home/cache")
    monkeypatch.setattr(inputs, "run_program", lambda arguments, given=None: None)
    monkeypatch.setattr(os, "access", lambda place, mode: not (mode & os.W_OK and Path(place) == here))
    with pytest.raises(ConfigError, match=f"the cache {here}/home/cache cannot be written on .*: {here} belongs to "):
        inputs.prepare_data(config)
    folder = inputs.data_folder(config)
    folder.mkdir(parents=True)
    (folder / "meta.json").write_text("{}")
    inputs.prepare_data(config)


def test_a_submission_fetches_first_and_its_job_asks_nothing(
    monkeypatch: pytest.MonkeyPatch, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    monkeypatch.setenv("HF_HUB_CACHE", str(here / "hub"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    config = smoke(f"cache_dir={here}/cache", f"run_dir={here}/run", "model=hub", "model.hub=org/name")
    config.launch.kind, config.launch.nproc_per_node, config.launch.nnodes = LaunchKind.slurm, 1, 1
    started: List[List[str]] = []

    def fetch(arguments: List[str], given: Optional[RunConfig] = None) -> None:
        started.append(arguments)
        folder = here / "hub" / "models--org--name"
        for name, text in (("refs/main", commit), *((f"snapshots/{commit}/{name}", "{}") for name in FETCHED)):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)

    def unreachable(arguments: List[str], given: Optional[RunConfig] = None) -> None:
        raise programs.ProgramFailed(EXIT_UNREACHABLE)

    monkeypatch.setattr(inputs, "_ASKED", set())
    monkeypatch.setattr(inputs, "run_program", unreachable)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError, match="model.hub=org/name is not in the cache of the hub"):
        inputs.fetch_for_job(config)  # the job would inherit the variable
    monkeypatch.delenv("HF_HUB_OFFLINE")
    inputs.fetch_for_job(config)
    assert "the job itself will ask the hub" in capsys.readouterr().out
    assert "HF_HUB_OFFLINE" not in script.render(config)
    with pytest.raises(ConfigError, match="model.hub=org/name is not in the cache of the hub") as error:
        inputs.fetch_model(config)  # in the job, on a node without a network
    assert "run ftdist prepare with these settings" in error.value.fix
    monkeypatch.setattr(inputs, "run_program", fetch)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")  # the hub may be asked
    inputs.fetch_for_job(config)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert config.model.revision == commit and "export HF_HUB_OFFLINE=1\n" in script.render(config)
    inputs.fetch_model(config)
    config.model.revision = None  # the next trial of a sweep
    inputs.fetch_for_job(config)
    assert config.model.revision == commit
    assert started == [["ftdist.model.fetch", "-"]], "a commit that is there is not asked for again"
    config.launch.slurm.container, config.launch.slurm.container_image = Container.pyxis, "image"
    for variable in ("", "1", "0"):  # the user may set it, as docs/slurm.md says for clusters without internet
        monkeypatch.setenv("HF_HUB_OFFLINE", variable) if variable else monkeypatch.delenv("HF_HUB_OFFLINE", False)
        text, mounted = script.render(config), variable != "0"
        assert (f"{here}/hub:{here}/hub" in text) == (f"export HF_HUB_CACHE={here}/hub\n" in text) == mounted


def test_a_submission_names_the_variables_of_wandb_that_have_no_effect(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "mine")
    prepare_run(smoke("launch=slurm", "launch.device=cpu", "launch.nproc_per_node=1", f"cache_dir={here}/cache"))
    assert capsys.readouterr().out == "note: WANDB_RUN_ID has no effect; set track.run_id\n"


def test_a_run_that_began_with_a_step_more_is_resumed(tmp_path: Path) -> None:
    """Earlier versions computed 1.1 epochs of 100 rows in floats."""
    run, config = RunDir(tmp_path), RunConfig()
    config.train.max_steps, config.train.epochs, config.batch.global_batch_size = None, 1.1, 10
    (run.checkpoints / "step-00000005").mkdir(parents=True)
    run.write_status(max_steps=12)
    inputs.check_length(run, config, 100)
    run.write_status(max_steps=11)
    inputs.check_length(run, config, 100)
    with pytest.raises(DataError, match="the run would have 11 steps instead of 13"):
        run.write_status(max_steps=13)
        inputs.check_length(run, config, 100)
