"""What of the hub is in its cache, and when a run asks it nothing."""

import json
import os
from pathlib import Path

import pytest

from ftdist.base.errors import ConfigError
from ftdist.config.data import SourceConfig
from ftdist.config.schema import RunConfig
from ftdist.launch.runs import inputs, resolve
from ftdist.model.fetch import wanted_files
from ftdist.run.hub import fetched_folder, hub_commit, is_fetched, offline_env, repositories
from ftdist.run.model_facts import ModelFacts, write_facts
from ftdist.run.prepared import data_folder

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of org/name in an empty cache of the hub, at the commit that main names."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    folder = tmp_path / "models--org--name"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    (folder / "snapshots" / COMMIT).mkdir(parents=True)
    return folder / "snapshots" / COMMIT


def on_hub(cache: Path) -> RunConfig:
    config = RunConfig(cache_dir=str(cache))
    config.model.hub = "org/name"
    return config


def test_a_model_is_fetched_only_with_all_its_files(snapshot: Path, tmp_path: Path) -> None:
    config = on_hub(tmp_path)
    shards = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    index = {"model.safetensors.index.json": json.dumps({"weight_map": shards})}
    for files, there in (
        ({}, False),
        ({"config.json": "{}"}, False),
        ({"config.json": "{}", **index, "model-1.safetensors": ""}, False),  # a download that was cut
        ({"config.json": "{}", **index, "model-1.safetensors": "", "model-2.safetensors": ""}, True),
    ):
        for name, text in files.items():
            (snapshot / name).write_text(text)
        assert is_fetched(config) is there, files
    assert fetched_folder(repositories(config)[0]) == snapshot and hub_commit("org/name", None) == COMMIT
    config.model.revision = "v2"
    assert not is_fetched(config)
    config.model.revision, config.model.tokenizer = COMMIT, "org/other"
    assert [one.key for one in repositories(config)] == ["model.hub", "model.tokenizer"] and not is_fetched(config)
    config.model.tokenizer = "bytes"
    assert is_fetched(config)


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": 3}'])
def test_damaged_files_count_as_fetched_so_that_the_check_names_them(text: str, snapshot: Path, tmp_path: Path) -> None:
    (snapshot / "config.json").write_text(text)
    (snapshot / "model.safetensors.index.json").write_text(text)
    config = on_hub(tmp_path)
    assert is_fetched(config) and offline_env(config) == {"HF_HUB_OFFLINE": "1"}


def test_a_damaged_file_in_the_cache_is_refused_even_if_the_model_was_checked_before(
    snapshot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (snapshot / "config.json").write_text("{}")
    (snapshot / "model.safetensors").write_bytes(b"cut")
    config = on_hub(tmp_path)
    config.model.revision, config.model.tokenizer = COMMIT, "bytes"
    write_facts(config, ModelFacts("llama", 1, None, has_position_table=False, recomputes=True))
    with pytest.raises(ConfigError, match="model.safetensors cannot be read"):
        inputs.prepare_model(config)
    (snapshot / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="config.json is not JSON"):
        inputs.prepare_model(config)


def test_no_request_is_made_if_everything_is_in_the_cache(
    snapshot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = on_hub(tmp_path)
    assert offline_env(config) == {} == offline_env(RunConfig())
    for name in ("config.json", "model.safetensors"):
        (snapshot / name).write_text("{}")
    assert offline_env(config) == {"HF_HUB_OFFLINE": "1"}
    for code, offline in (("modeling.Mine", True), ("org/code--modeling.Mine", False)):
        (snapshot / "config.json").write_text(json.dumps({"auto_map": {"AutoModel": code}}))
        assert bool(offline_env(config)) is offline, "code of another repository is not fetched"
    (snapshot / "config.json").write_text("{}")
    config.data.sources = {"mine": SourceConfig(hub="org/chats")}
    assert offline_env(config) == {}, "the data set is still to be read"
    data_folder(config).mkdir(parents=True)
    (data_folder(config) / "meta.json").write_text("{}")
    assert offline_env(config) == {"HF_HUB_OFFLINE": "1"}
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert offline_env(config) == {}, "what the user has set stays"


def test_a_hub_cache_whose_name_is_not_utf8_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """transformers and tokenizers need the name as text. A run that needs nothing from the hub is not refused."""
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", os.fsdecode(os.fsencode(tmp_path) + b"/h\xff"))
    resolve.resolve_paths(RunConfig(cache_dir=str(tmp_path)))
    with_data = RunConfig(cache_dir=str(tmp_path))
    with_data.data.sources["chats"] = SourceConfig(hub="org/chats")
    for config in (on_hub(tmp_path), with_data):
        with pytest.raises(
            ConfigError, match=r"the cache of the Hugging Face hub \(HF_HOME\) holds bytes that are not"
        ):
            resolve.resolve_paths(config)


def test_only_files_that_transformers_loads_are_fetched() -> None:
    names = ["README.md", "config.json", "tokenizer.model", "chat_template.jinja", "modeling_x.py", "sub/code.py",
             "original/params.json", "original/consolidated.00.pth", "consolidated.safetensors", "pytorch_model.bin",
             "model-1.safetensors", "model.safetensors.index.json", "model.gguf", "onnx/model.onnx"]  # fmt: skip
    small = {"config.json", "tokenizer.model", "chat_template.jinja", "modeling_x.py", "sub/code.py",
             "model.safetensors.index.json"}  # fmt: skip
    assert set(wanted_files(names, True)) == small | {"model-1.safetensors"}
    assert set(wanted_files(names, False)) == small
    assert "pytorch_model.bin" in wanted_files(["pytorch_model.bin", "config.json"], True)
