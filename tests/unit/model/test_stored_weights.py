"""The names and types of the weights in model folders, also in files of torch.save and in the cache of the hub."""

import json
from pathlib import Path
from typing import Any, Dict

import pytest
import torch

from ftdist.base.errors import ConfigError
from ftdist.config.schema import RunConfig
from ftdist.model.check import check_model
from ftdist.model.stored_weights import stored_tensors
from ftdist.run.model_facts import read_facts, write_facts
from tests.helpers.tiny import LLAMA, save_tiny_model
from tests.unit.run.test_weight_files import write_weights

BIN = "pytorch_model.bin"


def save(folder: Path, weights: Any, legacy: bool = False) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(LLAMA))
    torch.save(weights, folder / BIN, _use_new_zipfile_serialization=not legacy)


class Code:
    def __reduce__(self) -> Any:
        return print, ("this must not run",)


@pytest.mark.parametrize("legacy", [False, True])
def test_types_and_shapes_in_a_file_of_torch_save(legacy: bool, tmp_path: Path) -> None:
    save(
        tmp_path, {"a": torch.zeros(2), "b": torch.zeros(2, dtype=torch.int8), "c": torch.zeros(()).bfloat16()}, legacy
    )
    assert stored_tensors(tmp_path) == {"a": ("F32", (2,)), "b": ("int8", (2,)), "c": ("BF16", ())}


@pytest.mark.parametrize(
    ("weights", "found"),
    [
        ({"a": Code()}, "damaged or contains more than tensors"),
        ({"state_dict": {"a": torch.zeros(2)}}, "holds state_dict, a dict, among its weights"),
        ([torch.zeros(2)], "holds a list"),
        ({3: torch.zeros(2)}, "holds 3, a name of type int"),
        ({"a": torch.zeros(2, 2).to_sparse()}, "holds a, a tensor of layout torch.sparse_coo"),
        ({"a": torch.quantize_per_tensor(torch.zeros(2), 0.1, 0, torch.qint8)}, "holds quantized tensors"),
        ({"module.a": torch.zeros(2)}, "begin with module., as DistributedDataParallel"),
    ],
)
def test_other_things_in_such_a_file_are_refused(
    weights: Any, found: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path, weights)
    with pytest.raises(ConfigError) as caught:
        stored_tensors(tmp_path)
    assert found in caught.value.found and caught.value.fix
    assert "this must not run" not in capsys.readouterr().out


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    save(tmp_path, {"a": torch.zeros(1000)})
    whole = (tmp_path / BIN).read_bytes()
    for part in (whole[:1000], b"version https://git-lfs.github.com/spec/v1\n", b""):
        (tmp_path / BIN).write_bytes(part)
        with pytest.raises(ConfigError, match=f"{BIN} is damaged"):
            stored_tensors(tmp_path)


def model_weights(folder: Path) -> Dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    weights = load_file(save_tiny_model(folder) / "model.safetensors")
    (folder / "model.safetensors").unlink()
    return weights


def test_weights_of_a_type_that_cannot_be_trained_are_refused(tmp_path: Path) -> None:
    config, folder = RunConfig(cache_dir=str(tmp_path / "cache")), tmp_path / "model"
    config.model.path, weights = str(folder), model_weights(folder)
    torch.save(weights, folder / BIN)
    write_facts(config, check_model(config))
    assert read_facts(config) is not None
    torch.save(weights | {"lm_head.weight": weights["lm_head.weight"].to(torch.float8_e4m3fn)}, folder / BIN)
    assert read_facts(config) is None, "the model would not be checked again"
    with pytest.raises(ConfigError, match="lm_head.weight has the type float8_e4m3fn in the files of"):
        check_model(config)


def test_a_model_in_the_cache_of_the_hub_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    repository, commit = tmp_path / "models--org--name", "a" * 40
    folder = repository / "snapshots" / commit
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(LLAMA))
    write_weights(folder / "model.safetensors", {"lm_head.weight": "I8"})
    config = RunConfig()
    config.model.hub, config.model.revision = "org/name", commit
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("transformers.utils.hub.HF_HUB_CACHE", str(tmp_path), raising=False)
    with pytest.raises(ConfigError, match="lm_head.weight has the type I8 in the files of"):
        check_model(config)
    write_weights(folder / "model.safetensors", {"_orig_mod.lm_head.weight": "F32"})
    with pytest.raises(ConfigError, match="begin with _orig_mod., as torch.compile"):
        check_model(config)
    (folder / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(ConfigError, match="model.safetensors cannot be read"):
        check_model(config)
