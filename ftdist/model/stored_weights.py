"""The weights in the files of a model, their names, types and shapes, found without reading the weights."""

import json
import zipfile
from pathlib import Path
from typing import Any, Dict, NamedTuple, Tuple

import torch

from ftdist.base.errors import ConfigError
from ftdist.model.reasons import pickle_reason
from ftdist.run.weight_files import (
    TRAINED_TYPES,
    check_names,
    is_safetensors,
    tensor_header,
    weight_files,
)

TYPES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
"""Names of types, as the headers of safetensors files have them. Other types keep the name that PyTorch gives them."""


class StoredTensor(NamedTuple):
    """A tensor in a file."""

    type: str
    """Its type, as the headers of safetensors files name it."""
    shape: Tuple[int, ...]


def stored_tensors(folder: Path) -> Dict[str, StoredTensor]:
    """Return the tensors in the weights files of a model, by name.

    Raises:
        ConfigError: A file is missing or damaged, holds something else than tensors, or has the names of a wrapped
            model.
    """
    files = weight_files(folder, json.loads((folder / "config.json").read_text(encoding="utf-8")))
    tensors: Dict[str, StoredTensor] = {}
    for file in files:
        if is_safetensors(file):
            found = {name: (one["dtype"], one["shape"]) for name, one in tensor_header(file).items()}
        else:
            found = {name: (_name(one), one.shape) for name, one in _pickled_tensors(file).items()}
        tensors.update((name, StoredTensor(kind, tuple(shape))) for name, (kind, shape) in found.items())
    check_names(tensors, files[0])
    return tensors


def _kind(name: Any, tensor: Any) -> str:
    if not isinstance(name, str):
        return f"a name of type {type(name).__name__}"
    return f"a tensor of layout {tensor.layout}" if isinstance(tensor, torch.Tensor) else f"a {type(tensor).__name__}"


def _name(tensor: torch.Tensor) -> str:
    return TYPES.get(tensor.dtype, str(tensor.dtype).removeprefix("torch."))


def _pickled_tensors(file: Path) -> Dict[str, torch.Tensor]:
    """Return the tensors of a file that ``torch.save`` has written, without their numbers. No code in it is run."""
    try:
        found: Any = torch.load(file, map_location="meta", weights_only=True, mmap=zipfile.is_zipfile(file))
    except MemoryError:
        raise
    except Exception as error:  # a damaged file raises many kinds of exceptions
        if "Quantized" in str(error):  # PyTorch's quantized types have no tensors without numbers
            raise ConfigError(f"{file} holds quantized tensors", f"weights of the types {', '.join(TRAINED_TYPES)}",
                              "use a copy of the model whose weights are not quantized") from error  # fmt: skip
        raise ConfigError(f"{file} is damaged or contains more than tensors: {pickle_reason(error)}",
                          "*.safetensors, or a *.bin that contains tensors only",
                          "copy or download it again, or use another model") from error  # fmt: skip
    if not isinstance(found, dict):
        raise ConfigError(f"{file} holds a {type(found).__name__}", "tensors by name, as save_pretrained writes them",
                          "save the state_dict of the model")  # fmt: skip
    for name, tensor in found.items():
        if not isinstance(tensor, torch.Tensor) or not isinstance(name, str) or tensor.layout is not torch.strided:
            raise ConfigError(f"{file} holds {name}, {_kind(name, tensor)}, among its weights",
                              "tensors by name, as save_pretrained writes them",
                              "save the state_dict of the model alone")  # fmt: skip
    return found
