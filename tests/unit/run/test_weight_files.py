"""Folders of models whose weights files are incomplete or damaged."""

import json
import struct
from pathlib import Path

import pytest

from ftdist.base.errors import ConfigError
from ftdist.run.weight_files import check_weight_files, stored_layout

INDEX = "model.safetensors.index.json"


def write_weights(file: Path, types: dict[str, str]) -> None:
    """Write a safetensors file whose tensors have these types and no elements."""
    header = json.dumps({name: {"dtype": t, "shape": [0], "data_offsets": [0, 0]} for name, t in types.items()})
    file.write_bytes(struct.pack("<Q", len(header)) + header.encode())


def refusal(folder: Path) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        check_weight_files(folder, {})
    return caught.value


@pytest.mark.parametrize(
    "names", [["weights.safetensors"], ["training_args.bin"], ["model-1-of-2.safetensors", "model-2-of-2.safetensors"]]
)
def test_files_that_transformers_does_not_look_for_are_named(names: list[str], tmp_path: Path) -> None:
    for name in names:
        write_weights(tmp_path / name, {"a": "F32"})
    error = refusal(tmp_path)
    assert f"holds {', '.join(names)}, and none of the files that transformers loads" in error.found
    assert ("*.index.json" in error.fix) == (len(names) > 1)


@pytest.mark.parametrize(
    ("text", "found"),
    [("{", "is not JSON"), ("[]", "has no weight_map"), ("{}", "has no weight_map"),
     ('{"weight_map": {"a": 1}}', "has no weight_map"),
     ('{"weight_map": {"a": "gone.bin"}}', "gone.bin does not exist")],
)  # fmt: skip
@pytest.mark.parametrize("index", [INDEX, "pytorch_model.bin.index.json"])
def test_a_damaged_index_is_refused(index: str, text: str, found: str, tmp_path: Path) -> None:
    (tmp_path / index).write_text(text)
    assert found in refusal(tmp_path).found


def test_the_file_that_transformers_loads_is_checked(tmp_path: Path) -> None:
    write_weights(tmp_path / "one.safetensors", {"a": "F32", "b": "I8"})
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": "one.safetensors", "b": "one.safetensors"}}))
    (tmp_path / "config.json").write_text("{}")
    check_weight_files(tmp_path, {})
    of_index = stored_layout(tmp_path)
    write_weights(tmp_path / "model.safetensors", {"a": "F32", "b": "I8"})  # comes before the index
    assert stored_layout(tmp_path) == of_index, "the same tensors, in another file"
    write_weights(tmp_path / "model.safetensors", {"a": "F32", "b": "BF16"})
    assert stored_layout(tmp_path) != of_index
    assert "other.safetensors" in _refused_name(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    assert "model.safetensors cannot be read" in refusal(tmp_path).found


def _refused_name(folder: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        check_weight_files(folder, {"transformers_weights": "other.safetensors"})
    return caught.value.expected


@pytest.mark.parametrize(
    ("prefix", "wrapper"),
    [("_orig_mod.", "torch.compile"), ("module.", "DistributedDataParallel"), ("_forward_module.", "Lightning")],
)
def test_the_prefix_of_a_wrapped_model_is_named(prefix: str, wrapper: str, tmp_path: Path) -> None:
    write_weights(tmp_path / "model.safetensors", {f"{prefix}a": "F32", f"{prefix}b": "F32"})
    error = refusal(tmp_path)
    assert f"begin with {prefix}, as {wrapper}" in error.found and "save the unwrapped model" in error.fix
    write_weights(tmp_path / "model.safetensors", {f"{prefix}a": "F32", "b": "F32"})
    check_weight_files(tmp_path, {})
