"""Saved adapters: which settings are taken over, what is refused, and which base model they belong to."""

import json
import shlex
import struct
from pathlib import Path
from typing import Any, Dict, List, Optional

import pytest

from ftdist.base.errors import ConfigError
from ftdist.config.method import MethodKind
from ftdist.config.schema import RunConfig
from ftdist.run.adapters import (
    FOLDED,
    INIT_FROM,
    adapter_folder,
    adapter_settings,
    base_warning,
    find_adapters,
    tensor_shapes,
    to_train_longer,
)
from ftdist.run.base_model import base_identity, check_adapter_bases
from ftdist.run.file_names import ADAPTER_CONFIG, ADAPTER_WEIGHTS, EXPORT_MARK
from ftdist.run.identity import describe_files
from ftdist.run.locations import model_location
from ftdist.run.model_facts import _file

NAMES = ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj")
PEFT: Dict[str, Any] = {
    "peft_type": "LORA", "r": 8, "lora_alpha": 16, "lora_dropout": 0.1, "target_modules": ["up_proj", "q_proj"],
    "use_rslora": True, "use_dora": False, "bias": "none", "rank_pattern": {}, "alpha_pattern": {},
    "modules_to_save": None, "init_lora_weights": True, "base_model_name_or_path": "org/base-1b",
    "layers_to_transform": None, "exclude_modules": None,
}  # fmt: skip


def save_adapter(folder: Path, byte: int = 0, **settings: Any) -> Path:
    """Write an adapter whose weights are all ``byte``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ADAPTER_CONFIG).write_text(json.dumps({**PEFT, **settings}))
    header, end = {}, 0
    for name in NAMES:
        for part, shape in (("A", [8, 64]), ("B", [64, 8])):
            at = [end, end + 2048]
            header[f"base_model.model.{name}.lora_{part}.weight"] = {"dtype": "F32", "shape": shape, "data_offsets": at}
            end += 2048
    text = json.dumps(header).encode()
    (folder / ADAPTER_WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + bytes([byte]) * end)
    return folder


def test_the_settings_of_an_adapter_have_our_names(tmp_path: Path) -> None:
    folder = save_adapter(tmp_path / "adapter")
    expected = {"r": 8, "lora_alpha": 16.0, "target_modules": ["q_proj", "up_proj"], "layers_to_transform": None,
                "use_rslora": True, "use_dora": False, "modules_to_save": []}  # fmt: skip
    assert adapter_settings(INIT_FROM, folder) == expected
    for pattern in ({"target_modules": r".*\.(q|up)_proj"}, {"layers_to_transform": [0, 1]}, {"exclude_modules": "x"}):
        save_adapter(folder, **pattern)
        assert adapter_settings(INIT_FROM, folder) == {**expected, "target_modules": sorted(NAMES)}, pattern


def test_settings_of_newer_versions_of_peft_that_are_off_change_nothing(tmp_path: Path) -> None:
    one, other = (
        save_adapter(tmp_path / "one"),
        save_adapter(tmp_path / "other", newer=None, newest={}),
    )
    assert adapter_settings(INIT_FROM, one) == adapter_settings(INIT_FROM, other)


@pytest.mark.parametrize(
    "changed",
    [{"peft_type": "LOHA"}, {"bias": "all"}, {"rank_pattern": {"q_proj": 2}}, {"alpha_pattern": {"q_proj": 2}},
     {"init_lora_weights": "pissa"}, {"lora_bias": True}, {"target_parameters": ["experts"]},
     {"use_newer": True}, {"r": None}, {"lora_alpha": None}],
    ids=str,
)  # fmt: skip
def test_adapters_that_compute_something_else_are_refused(changed: Dict[str, Any], tmp_path: Path) -> None:
    folder = save_adapter(tmp_path / "adapter", **changed)
    if changed == {"r": None}:
        settings = json.loads((folder / ADAPTER_CONFIG).read_text())
        del settings["r"]
        (folder / ADAPTER_CONFIG).write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match=r"which ftdist cannot train|r or lora_alpha is missing"):
        adapter_settings(INIT_FROM, folder)


def test_a_run_stands_for_its_export_and_other_folders_are_named(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.yaml").touch()
    with pytest.raises(ConfigError, match="is a run without an export") as caught:
        adapter_folder(INIT_FROM, str(run))
    assert caught.value.fix == f"ftdist export {run}"
    save_adapter(run / "export")
    assert adapter_folder(INIT_FROM, str(run)) == run / "export"
    (run / "export" / ADAPTER_WEIGHTS).rename(run / "export" / "other")
    (run / "export" / "config.json").touch()
    with pytest.raises(ConfigError, match=f"holds no {ADAPTER_WEIGHTS}") as caught:
        adapter_folder(FOLDED, str(run))
    assert caught.value.fix.startswith("model.path=")
    with pytest.raises(ConfigError, match="does not exist"):
        adapter_folder(FOLDED, str(tmp_path / "nothing"))
    (checkpoint := run / "checkpoints" / "step-00000040").mkdir(parents=True)
    with pytest.raises(ConfigError, match="step-00000040 holds no adapter_config.json") as caught:
        adapter_folder(INIT_FROM, str(checkpoint))
    command = f"ftdist export {run} --checkpoint 40 --out {run}/export-40"
    assert caught.value.fix == f"export the checkpoint: {command}, then method.init_from={run}/export-40"
    (run / "export" / ADAPTER_WEIGHTS).write_bytes(b"short")
    with pytest.raises(ConfigError, match="cannot be read"):
        tensor_shapes(run / "export" / ADAPTER_WEIGHTS)


def test_weights_in_a_pickle_are_refused_with_the_program_that_converts_them(tmp_path: Path) -> None:
    import torch

    folder = save_adapter(tmp_path / "it's")
    shapes = tensor_shapes(folder / ADAPTER_WEIGHTS)
    torch.save({name: torch.zeros(shape) for name, shape in shapes.items()}, folder / "adapter_model.bin")
    (folder / ADAPTER_WEIGHTS).unlink()
    with pytest.raises(ConfigError, match=f"holds no {ADAPTER_WEIGHTS}") as caught:
        adapter_folder(INIT_FROM, str(folder))
    assert caught.value.fix.startswith("write adapter_model.bin, which may hold code, as safetensors: python -c ")
    exec(shlex.split(caught.value.fix)[-1])
    assert tensor_shapes(folder / ADAPTER_WEIGHTS) == shapes


def test_an_adapter_without_weights_is_refused(tmp_path: Path) -> None:
    """Programs that save the shards of a rank of ZeRO-3 leave a file of 40 bytes."""
    folder = save_adapter(tmp_path / "adapter")
    text = json.dumps({"__metadata__": {"format": "pt"}}).encode()
    (folder / ADAPTER_WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text)
    for key in (INIT_FROM, FOLDED):
        with pytest.raises(ConfigError, match=f"{key}: .* holds no weights of an adapter"):
            adapter_settings(key, folder)


def config_of(tmp_path: Path, **adapters: Path) -> RunConfig:
    config = RunConfig(cache_dir=str(tmp_path / "cache"))
    config.model.config, config.model.tokenizer = {"model_type": "llama"}, "bytes"
    config.model.adapter = str(adapters["folded"]) if "folded" in adapters else None
    config.method.init_from = str(adapters["init_from"]) if "init_from" in adapters else None
    return config


def test_an_adapter_of_another_base_is_refused(tmp_path: Path) -> None:
    first, second = save_adapter(tmp_path / "first"), save_adapter(tmp_path / "second")
    plain = base_identity(config_of(tmp_path))
    config = config_of(tmp_path, folded=first, init_from=second)
    check_adapter_bases(config)  # adapters of other programs do not say what their base was
    (first / EXPORT_MARK).write_text(json.dumps({"base": plain}))
    (second / EXPORT_MARK).write_text(json.dumps({"base": base_identity(config)}))
    check_adapter_bases(config)
    (second / EXPORT_MARK).write_text(json.dumps({"base": plain}))  # it was trained without the folded adapter
    with pytest.raises(ConfigError, match="method.init_from=.*second was trained on a base model with other weights"):
        check_adapter_bases(config)
    (first / EXPORT_MARK).write_text(json.dumps({"base": "another"}))
    with pytest.raises(ConfigError, match="model.adapter=.*first was trained on a base model with other weights"):
        check_adapter_bases(config)
    save_adapter(first, base_model_name_or_path=None)
    with pytest.raises(ConfigError, match=r"other weights \(random\)") as error:
        check_adapter_bases(config)
    assert error.value.fix == "set model.config and seed to those of its run, or leave out model.adapter"
    assert not base_warning(config), "the identity of the base is known"
    save_adapter(first)
    (first / EXPORT_MARK).unlink()
    assert "model.adapter says that its base model is org/base-1b" in base_warning(config)
    config.model.path = "/models/Base-1B"
    assert not base_warning(config)


@pytest.mark.parametrize("name", ["smollm2-135m-instruct", "tiny-0123456789ab"], ids=["built-in", "GGUF"])
def test_the_converted_folder_in_the_cache_is_the_base_model_of_its_run(name: str, tmp_path: Path) -> None:
    """The adapter of such a run names this folder, and ``ftdist eval ADAPTER`` sets model.path to it."""
    adapter, config = save_adapter(tmp_path / "adapter"), RunConfig(cache_dir=str(tmp_path / "cache"))
    config.model.builtin = name
    folder = Path(model_location(config))
    folder.mkdir(parents=True)
    (folder / "config.json").touch()
    (adapter / EXPORT_MARK).write_text(json.dumps({"base": base_identity(config)}))
    config.model.builtin, config.model.path, config.model.adapter = None, str(folder), str(adapter)
    check_adapter_bases(config)
    (tmp_path / "other" / name).mkdir(parents=True)
    config.model.path = str(tmp_path / "other" / name)
    with pytest.raises(ConfigError, match="was trained on a base model with other weights"):
        check_adapter_bases(config)


def test_the_identity_of_a_run_and_its_base_covers_the_adapters(tmp_path: Path) -> None:
    folder = save_adapter(tmp_path / "adapter")
    folded, continued = config_of(tmp_path, folded=folder), config_of(tmp_path, init_from=folder)
    before = [base_identity(folded), describe_files(folded)["model.adapter"], _file(folded)]
    inputs = describe_files(continued)[INIT_FROM]
    assert base_identity(continued) == base_identity(config_of(tmp_path)) != before[0]
    save_adapter(folder, byte=1)
    assert base_identity(folded) != before[0] and describe_files(folded)["model.adapter"] != before[1]
    assert describe_files(continued)[INIT_FROM] != inputs and _file(folded) == before[2]
    save_adapter(folder, r=4)
    assert _file(folded) != before[2], "the adapter would not be checked again"
    (folder / ADAPTER_WEIGHTS).unlink()
    assert describe_files(continued)[INIT_FROM].startswith("gone: ")
    with pytest.raises(ConfigError, match="model.adapter=.* holds no"):
        find_adapters(folded)


@pytest.mark.parametrize(
    ("kind", "folded", "words"),
    [
        ("full", None, ["model=folder", "model.path=it's a run/export"]),
        ("partial", "an adapter", ["model=folder", "model.path=it's a run/export"]),
        ("lora", None, ["method=lora", "method.init_from=it's a run"]),
        ("qlora", None, ["method=qlora", "method.init_from=it's a run"]),
        ("lora", "an adapter", ["model=folder", "model.path=it's a run/export"]),
    ],
)
def test_a_finished_run_goes_on_from_what_its_export_is(kind: str, folded: Optional[str], words: List[str]) -> None:
    config = RunConfig()
    config.method.kind, config.model.adapter = MethodKind[kind], folded
    assert shlex.split(to_train_longer(config, "it's a run")) == words
