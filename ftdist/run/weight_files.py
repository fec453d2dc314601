"""The weights files of a model's folder, checked without reading any weights."""

import hashlib
import json
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any, Collection, Dict, List

from ftdist.base.errors import ConfigError
from ftdist.base.permissions import explain_os_error

MAX_HEADER = 100_000_000
"""Maximum number of bytes of the header of a safetensors file. Source: the safetensors library."""
SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")
"""A file with all weights."""
INDEXES = tuple(f"{name}.index.json" for name in SINGLE_FILES)
"""A file that names the file of each weight."""
WHOLE = tuple(name for pair in zip(SINGLE_FILES, INDEXES, strict=True) for name in pair)
"""The files that transformers loads a model from. It uses the first one that exists."""
EXPLICIT = "transformers_weights"
"""The field of config.json that names another file."""
TRAINED_TYPES = ("F64", "F32", "F16", "BF16")
"""Types of weights that can be trained, as the headers of safetensors files name them."""
WRAPPERS = {"_orig_mod.": "torch.compile", "module.": "DistributedDataParallel",
            "_fsdp_wrapped_module.": "FullyShardedDataParallel", "_forward_module.": "Lightning"}  # fmt: skip
"""Prefixes of the names of all weights of a wrapped model, and what wrapped it."""
COPY = "copy the weights there, or download the model again"


def check_weight_files(folder: Path, arch: Dict[str, Any]) -> None:
    """Check that a folder has weights which transformers finds.

    Args:
        arch: The content of its config.json.

    Raises:
        ConfigError: There are none, a file is missing or damaged, or all names of weights have the prefix of a wrapper.
    """
    files = weight_files(folder, arch)
    check_names([name for file in files if is_safetensors(file) for name in tensor_header(file)], files[0])


def check_names(names: Collection[str], file: Path) -> None:
    """Check that weights do not have the names that they have in a wrapped model.

    Args:
        names: Names of all weights.
        file: The first of the files that hold them, for the message.

    Raises:
        ConfigError: All names have the prefix of a wrapper.
    """
    for prefix, wrapper in WRAPPERS.items():
        if names and all(name.startswith(prefix) for name in names):
            raise ConfigError(f"the names of all weights in {file} begin with {prefix}, as {wrapper} names the "
                              f"weights of the model that it wraps (for example {min(names)})",
                              "the names of the model itself, as save_pretrained of the unwrapped model writes them",
                              f"save the unwrapped model, or remove {prefix} from the names")  # fmt: skip


def is_safetensors(file: Path) -> bool:
    """Return whether a weights file has the format of safetensors. Others have that of ``torch.save``."""
    return file.suffix == ".safetensors"


def stored_layout(folder: Path) -> str:
    """Return a hash of the names, types and shapes of the tensors in a model's safetensors files.

    If ``check_weight_files`` would refuse the folder, the hash is that of an empty list of tensors.
    """
    tensors: Dict[str, Any] = {}
    with suppress(ConfigError, OSError):
        for file in filter(is_safetensors, _accepted_files(folder)):
            tensors.update((name, [found["dtype"], found["shape"]]) for name, found in tensor_header(file).items())
    return hashlib.sha256(json.dumps(tensors, sort_keys=True).encode()).hexdigest()


def pickled_files(folder: Path) -> List[List[Any]]:
    """Return the name, the size and the time of the last change of each weights file that ``torch.save`` has written.

    This module cannot read the content of these files. The result is empty if ``check_weight_files`` would refuse the
    folder.
    """
    with suppress(OSError):
        files = [(file, file.stat()) for file in _accepted_files(folder) if not is_safetensors(file)]
        return [[file.name, found.st_size, found.st_mtime_ns] for file, found in files]
    return []


def _accepted_files(folder: Path) -> List[Path]:
    """Return the weights files of a folder. The result is empty if transformers would not find them."""
    with suppress(ConfigError, OSError, ValueError):
        return weight_files(folder, json.loads((folder / "config.json").read_text(encoding="utf-8")))
    return []


def tensor_header(file: Path) -> Dict[str, Any]:
    """Return what the header of a safetensors file says about each tensor, by name.

    Raises:
        ConfigError: The header cannot be read, or the file is cut off.
        AccessError: This user may not read the file.
    """
    try:
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            header = json.loads(opened.read(min(length, MAX_HEADER)))
        tensors = {name: found for name, found in header.items() if name != "__metadata__"}
        needed = 8 + length + max((found["data_offsets"][1] for found in tensors.values()), default=0)
        if file.stat().st_size < needed:
            raise ValueError(f"it has {file.stat().st_size:,} bytes instead of {needed:,}")
        if not all(isinstance(found["shape"], list) and isinstance(found["dtype"], str) for found in tensors.values()):
            raise ValueError("its header does not say the shape and type of each tensor")
        return tensors
    except PermissionError as error:
        raise explain_os_error(error) from error
    except (OSError, ValueError, struct.error, KeyError, TypeError, AttributeError, MemoryError) as error:
        raise ConfigError(f"{file} cannot be read: {error}", "a complete safetensors file",
                          "copy or export it again") from error  # fmt: skip


def weight_files(folder: Path, arch: Dict[str, Any]) -> List[Path]:
    """Return the files that transformers loads the weights of a folder from.

    Raises:
        ConfigError: See ``check_weight_files``.
    """
    explicit = arch.get(EXPLICIT)
    wanted = (str(explicit),) if explicit else WHOLE
    first = next((folder / name for name in wanted if (folder / name).is_file()), None)
    if first is None:
        other = sorted(path.name for pattern in ("*.safetensors", "*.bin") for path in folder.glob(pattern))
        found = f"{folder} holds {', '.join(other[:4])}, and none of the files that transformers loads"
        fix = "copy its *.index.json there, or download the model again" if len(other) > 1 else COPY
        raise ConfigError(found, " or ".join(wanted), fix)
    return _files_of_index(first) if first.name.endswith(".index.json") else [first]


def _files_of_index(index: Path) -> List[Path]:
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise _bad_index(index, f"is not JSON: {error}") from error
    except PermissionError as error:
        raise explain_os_error(error) from error
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise _bad_index(index, "has no weight_map that names the file of each weight")
    files = [index.parent / name for name in sorted(set(places.values()))]
    for file in files:
        if not file.is_file():
            raise ConfigError(f"{file} does not exist, but {index.name} names it", "every weights file of the model",
                              COPY)  # fmt: skip
    return files


def _bad_index(index: Path, problem: str) -> ConfigError:
    return ConfigError(f"{index} {problem}", 'an index of weights: {"weight_map": {NAME: FILE, …}}',
                       "copy the file from the model's repository")  # fmt: skip
