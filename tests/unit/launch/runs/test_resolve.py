"""Fitting a config to this machine: defaults become explicit, and errors name what to change."""

import json
import shutil
import struct
from pathlib import Path
from typing import Any, List, NamedTuple

import pytest

from ftdist.base.errors import ConfigError, FtdistError
from ftdist.config.data import SourceConfig
from ftdist.config.frozen import dump_config
from ftdist.config.launch import Device
from ftdist.config.schema import RunConfig, Wandb
from ftdist.launch.attempt import machine
from ftdist.launch.backends import foreground
from ftdist.launch.runs import resolve
from ftdist.plan.layout import layout_of
from ftdist.plan.warmup import fit_schedule
from ftdist.run.rundir import RunDir
from ftdist.run.source_files import source_files


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(foreground, "visible_gpus", lambda: [])
    for module in (foreground, resolve):
        monkeypatch.setattr(module, "cpu_cores", lambda: 6)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    config = RunConfig()
    config.model.config, config.model.tokenizer = {"model_type": "llama"}, "bytes"
    config.data.sources["mine"] = SourceConfig(path="x.jsonl")
    config.train.max_steps = 10
    return config


def gpus(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(foreground, "visible_gpus", lambda: ["NVIDIA H100"] * number)


def refused(config: RunConfig) -> str:
    with pytest.raises(FtdistError) as error:
        resolve.resolve(config)
    return str(error.value)


def test_every_default_becomes_explicit_on_cpu(config: RunConfig, tmp_path: Path) -> None:
    config.launch.nproc_per_node = 2
    plan = resolve.resolve(config)
    assert plan.dp_world_size == 2 and config.batch.grad_accum_steps == 4
    assert (config.launch.device, config.launch.threads_per_rank, config.data.num_workers) == (Device.cpu, 3, 6)
    assert config.track.wandb is Wandb.offline and config.track.run_id
    assert config.run_dir and Path(config.run_dir).parent == tmp_path / "runs" and config.run_dir.endswith("-run")
    assert config.data.sources["mine"].path == str(tmp_path / "x.jsonl")
    assert config.cache_dir and Path(config.cache_dir).is_absolute()
    text = dump_config(config)
    for kept in ("attention", "train_on", "turns", "format"):  # these are decided for each model or record
        text = text.replace(f"{kept}: auto", "")
    assert "auto" not in text


def test_runs_made_in_the_same_second_have_different_names(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve.time, "strftime", lambda form: "20260101-120000")
    names = []
    for _ in range(3):
        config.run_dir = None
        resolve.resolve(config)
        Path(config.run_dir or "").mkdir(parents=True)
        names.append(Path(config.run_dir or "").name)
    assert names == ["20260101-120000-run", "20260101-120000-run-2", "20260101-120000-run-3"]


def test_every_visible_gpu_is_used(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 4)
    plan = resolve.resolve(config)
    assert config.launch.device is Device.cuda and plan.dp_world_size == 4


def test_wandb_is_online_for_a_user_who_is_logged_in(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "k")
    resolve.resolve(config)
    assert config.track.wandb is Wandb.online


def test_a_config_for_gpus_is_refused_on_a_machine_without_gpus(config: RunConfig) -> None:
    config.launch.device = Device.cuda
    assert "launch.device=cuda, but this machine has no GPU" in (text := refused(config))
    assert "launch.device=cpu" in text


def test_more_ranks_than_gpus_are_refused(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 2)
    config.launch.nproc_per_node = 8
    assert "launch.nproc_per_node=8, but this machine has 2 visible GPUs" in (text := refused(config))
    assert "fix:      launch.nproc_per_node=2" in text


def test_several_nodes_need_another_way_to_start_ranks(config: RunConfig) -> None:
    config.launch.nnodes = 4
    assert "torchrun --nnodes 4" in refused(config)
    resolve.resolve(config, ranks=(2, 4))
    assert layout_of(config).world == 8


def test_a_batch_that_is_not_divisible_is_refused(config: RunConfig) -> None:
    config.launch.nproc_per_node, config.batch.global_batch_size = 3, 8
    assert "batch.global_batch_size=8 is not divisible" in (text := refused(config))
    assert "batch.global_batch_size=6 or 9" in text


@pytest.mark.parametrize("content", [None, [], ["config.json"], ["readme.md"]])
def test_a_folder_without_a_model_is_refused(content: Any, config: RunConfig, tmp_path: Path) -> None:
    config.model.config, config.model.path = {}, "m"
    if content is not None:
        (tmp_path / "m").mkdir()
        for name in content:
            (tmp_path / "m" / name).write_text('{"model_type": "llama"}')
    assert "model.path=" in refused(config)


@pytest.mark.parametrize(
    ("key", "given", "near"),
    [
        ("data.sources.mine.path", "chts.jsonl", "chats.jsonl"),
        ("data.heldout.mine.path", "dta/chats.jsonl", "data/chats.jsonl"),
        ("model.path", "modle", "model"),
        ("model.path", "elsewhere/smol.guf", ""),
        ("model.path", "model/smoll.gguf", "model/smol.gguf"),
    ],
)
def test_an_error_about_a_missing_path_names_similar_paths(
    key: str, given: str, near: str, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("chats.jsonl", "data/chats.jsonl", "model/smol.gguf"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    if key == "model.path":
        config.model.config, config.model.path = {}, given
    else:
        getattr(config.data, key.split(".")[1])["mine"] = SourceConfig(path=given)
    text = refused(config)
    assert given in text and "fix: " in text
    place = str(tmp_path / near) if key == "model.path" else near
    assert (f"fix:      {key}={place}" if near else "fix:      model.path=FOLDER") in text


BYTES = "caf\udce9"
"""A name in Latin-1, as Python reads it."""


def test_a_path_whose_bytes_are_not_utf_8_is_refused_before_the_start(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run there would train to its end, and then fail to write its model card."""
    (folder := tmp_path / BYTES).mkdir()
    config.cache_dir = str(tmp_path)
    monkeypatch.chdir(folder)
    assert refused(config).startswith(f"runs_dir holds bytes that are not UTF-8: b'{tmp_path}/caf\\xe9/runs'")
    assert f"mv $'{tmp_path}/caf\\351' NAME" in refused(config)
    monkeypatch.chdir(tmp_path)
    config.runs_dir, config.run_dir = "runs", None
    for key in ("cache_dir", "run_dir"):
        setattr(config, key, f"{BYTES}/x")
        assert refused(config).startswith(f"{key} holds bytes that are not UTF-8")
        setattr(config, key, str(tmp_path / "x"))
    (folder / "a.jsonl").touch()
    for path in (str(tmp_path / "*" / "a.jsonl"), str(folder / "a.jsonl")):
        with pytest.raises(FtdistError, match="the name of a file holds bytes that are not UTF-8"):
            source_files("data.sources.mine", path)
    (folder / "run.yaml").touch()
    with pytest.raises(FtdistError) as error:
        RunDir.open(folder)
    assert error.value.found.startswith("the name of the run directory holds bytes that are not UTF-8")
    assert error.value.fix.endswith(f"mv $'{tmp_path}/caf\\351' NAME")


def test_a_cache_dir_that_is_a_file_is_refused(config: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    config.cache_dir = str(tmp_path / "cache")
    assert "is not a folder" in (text := refused(config)) and "cache_dir=FOLDER" in text


def test_a_run_directory_that_holds_a_run_is_refused(config: RunConfig, tmp_path: Path) -> None:
    config.run_dir = str(tmp_path / "runs" / "a")
    resolve.resolve(config)
    resolve.check_run_dir(config)
    Path(config.run_dir).mkdir(parents=True)
    resolve.check_run_dir(config)  # empty: nothing to lose
    (Path(config.run_dir) / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="exists and is not empty"):
        resolve.check_run_dir(config)
    (Path(config.run_dir) / "run.yaml").write_text("")
    with pytest.raises(ConfigError) as error:
        resolve.check_run_dir(config)
    assert "already holds a run" in str(error.value) and "ftdist resume" in error.value.fix


def test_a_runs_dir_that_cannot_be_written_is_refused(config: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    config.runs_dir = "file"
    resolve.resolve(config)
    with pytest.raises(ConfigError, match=r"cannot make .*file.* is not a folder that you may write to"):
        resolve.check_run_dir(config)


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_a_run_without_disk_space_for_its_checkpoints_is_refused(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    header = {"__metadata__": {"format": "pt"}, "a": {"dtype": "BF16", "shape": [1000, 500], "data_offsets": [0, 10]},
              "b": {"dtype": "BF16", "shape": [], "data_offsets": [10, 12]}}  # fmt: skip
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(12))
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_text('{"model_type": "llama"}')
    assert resolve.count_parameters(folder) == 500_001
    config.model.config, config.model.path = {}, str(folder)
    resolve.resolve(config)
    resolve.check_disk(config)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1, 1, 500_001 * 12 - 1))
    with pytest.raises(ConfigError) as error:
        resolve.check_disk(config)
    assert "5.8 MiB free" in str(error.value) and "take 5.8 MiB each, one" in str(error.value)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1, 1, 500_001 * 12 * 3))
    resolve.check_disk(config)
    whole = (folder / "model.safetensors").read_bytes()
    for damaged in (whole[:-1], whole[:20], b"", b"\xff" * 99):
        (folder / "model.safetensors").write_bytes(damaged)
        with pytest.raises(ConfigError, match="model.safetensors cannot be read: "):
            resolve.check_disk(config)
    (folder / "model.safetensors").write_bytes(whole)
    config.train.checkpoint_every, config.train.max_steps, config.data.heldout_share = 1, 100, 0.1
    with pytest.raises(ConfigError, match="4 at a time"):  # two that are kept, the best, the one being written
        resolve.check_disk(config)
    config.train.max_steps = 3  # no more are ever made
    resolve.check_disk(config)


LISTED = """GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-aaaa-1)
GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-bbbb-2)
GPU 2: NVIDIA L4 (UUID: GPU-cccc-3)
"""


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        (None, ["NVIDIA H100 80GB HBM3", "NVIDIA H100 80GB HBM3", "NVIDIA L4"]),
        ("", []),
        ("-1", []),
        ("2", ["NVIDIA L4"]),
        ("0,9,1", ["NVIDIA H100 80GB HBM3"]),
        ("GPU-cccc,0", ["NVIDIA L4", "NVIDIA H100 80GB HBM3"]),
    ],
)
def test_cuda_visible_devices_is_read_as_cuda_reads_it(
    visible: Any, names: List[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\ncat <<'END'\n{LISTED}END\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert machine.visible_gpus() == names


def test_the_summary_of_the_machine() -> None:
    summary = machine.machine_summary()
    assert int(summary["cores"]) >= 1 and "GiB free" in summary["memory"] and "torch 2." in summary["libraries"]


def test_warm_up_must_fit_into_the_epochs() -> None:
    config = RunConfig()
    config.train.epochs, config.optim.warmup_steps, config.batch.global_batch_size = 1.0, 30, 4
    with pytest.raises(ConfigError, match=r"the run has 7 steps[\s\S]*optim.warmup_steps=0"):
        fit_schedule(config, 25)
    fit_schedule(config, 400)


@pytest.mark.parametrize("name", ["varlen", "flex"])
def test_an_attention_that_needs_a_gpu_is_refused_before_anything_starts(name: str, tmp_path: Path) -> None:
    from tests.helpers.tiny import tiny_config

    config = tiny_config(tmp_path, "model.path=null", "model.config.model_type=llama", f"model.attention={name}")
    with pytest.raises(ConfigError, match=f"model.attention={name} cannot be used on CPU"):
        resolve.resolve(config)


def test_pages_on_a_cpu_are_refused_before_anything_starts(tmp_path: Path) -> None:
    from tests.helpers.tiny import tiny_config

    config = tiny_config(tmp_path, "model.path=null", "model.config.model_type=llama", "optim.paged=true")
    with pytest.raises(ConfigError, match="optim.paged=true cannot be used on CPU") as caught:
        resolve.resolve(config)
    assert caught.value.fix == "optim.paged=false"


def test_kernels_that_need_a_gpu_are_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.helpers.tiny import tiny_config

    config = tiny_config(tmp_path, "model.path=null", "model.config.model_type=llama", "model.kernels=liger")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ConfigError, match="model.kernels=liger cannot be used on CPU"):
        resolve.resolve(config)
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # then Triton runs them on a CPU
    resolve.resolve(config)
