"""Locations of the cache, the model and the tokenizer, found without loading anything."""

import json
import os
import platform
from pathlib import Path
from typing import Optional

from ftdist.base.errors import ConfigError
from ftdist.base.names import near_paths
from ftdist.base.permissions import describe_rights, require_access, require_readable_folder
from ftdist.base.shell import override_word
from ftdist.base.terminal import print_if_long
from ftdist.config.schema import RunConfig
from ftdist.run.file_hashes import FileHashes
from ftdist.run.file_names import ADAPTER_CONFIG
from ftdist.run.weight_files import COPY, check_weight_files

WEIGHTS = ("*.safetensors", "*.bin")
TOKENIZER = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")


def cache_root(config: RunConfig) -> Path:
    """Return the folder of the cache, which holds prepared data, converted models and facts about models.

    It is ``cache_dir`` of the config, else ``$FTDIST_CACHE``, else ``~/.cache/ftdist``.
    """
    return Path(config.cache_dir or os.environ.get("FTDIST_CACHE") or Path.home() / ".cache" / "ftdist").expanduser()


def require_writable_cache(config: RunConfig, part: str) -> None:
    """Check that a part of the cache can be written. A cache that holds all that a run needs may be read-only.

    Args:
        part: Name of the folder in the cache, for example ``data``.

    Raises:
        ConfigError: It cannot be written: it belongs to another user, or is read-only on this machine.
    """
    cache = cache_root(config)
    place = next(path for path in (cache / part, cache, *cache.absolute().parents) if path.exists())
    if not os.access(place, os.W_OK | os.X_OK):
        raise ConfigError(f"the cache {cache} cannot be written on {platform.node()}: {place} {describe_rights(place)}",
                          "a cache on a disk that can be written", "cache_dir=FOLDER, or FTDIST_CACHE=FOLDER for all "
                          "runs; or run ftdist prepare where the cache can be written")  # fmt: skip


def model_location(config: RunConfig) -> str:
    """Return where transformers loads the model from: a folder or a hub ID.

    For a GGUF file or a built-in model it is the folder in the cache to which ``ftdist.model.convert`` converts it. For
    a model that is defined by ``model.config`` and has random weights, it is an empty text.

    Raises:
        ConfigError: The .gguf file does not exist.
    """
    model = config.model
    if model.builtin:
        return str(cache_root(config) / "models" / model.builtin)
    if model.path and is_gguf(model.path):
        return str(cache_root(config) / "models" / f"{Path(model.path).stem}-{_gguf_digest(config)[:12]}")
    return model.path or model.hub or ""


def tokenizer_location(config: RunConfig) -> str:
    """Return where the tokenizer is loaded from: a folder, a hub ID, or ``bytes``, the built-in byte-level
    tokenizer."""
    return config.model.tokenizer or model_location(config)


def tokenizer_revision(config: RunConfig) -> Optional[str]:
    """Return the commit, branch or tag of a tokenizer on the hub. None: its main branch."""
    return config.model.tokenizer_revision if config.model.tokenizer else config.model.revision


def is_gguf(path: str) -> bool:
    """Return whether a path names a GGUF file."""
    return path.lower().endswith(".gguf")


def holds_model(folder: Path) -> bool:
    """Return whether a folder holds a model or an adapter."""
    return any((folder / name).is_file() for name in ("config.json", ADAPTER_CONFIG))


def is_converted(config: RunConfig) -> bool:
    """Return whether the model is loaded from a converted folder in the cache."""
    return bool(config.model.builtin or (config.model.path and is_gguf(config.model.path)))


def needs_conversion(config: RunConfig) -> bool:
    """Return whether ``ftdist.model.convert`` must run before the model can be loaded."""
    return is_converted(config) and not (Path(model_location(config)) / "config.json").is_file()


def check_model_folder(config: RunConfig) -> None:
    """Check that a model can be loaded from ``model.path``. Other kinds of models are not checked.

    Raises:
        ConfigError: Something is missing. The message says what the folder holds.
    """
    if not config.model.path:
        return
    path = Path(config.model.path)
    if is_gguf(config.model.path):
        _gguf_file(config)
        return
    require_readable_folder(path)
    expected = "a Hugging Face model folder (config.json, *.safetensors, tokenizer.json) or a .gguf file"
    if not path.is_dir():
        found = "is a file" if path.is_file() else "does not exist"
        near = [override_word("model.path", place) for place in near_paths(config.model.path)]
        raise ConfigError(
            f"model.path={path} {found}", expected, " or ".join(near) or "model.path=FOLDER, or model.hub=ORG/NAME"
        )
    inside = sorted(entry.name for entry in path.iterdir())
    held = f"it holds {', '.join(inside[:8])}{', …' if len(inside) > 8 else ''}" if inside else "it is empty"
    if not (path / "config.json").is_file():
        if (path / ADAPTER_CONFIG).is_file():
            raise ConfigError(f"model.path={path} holds an adapter ({ADAPTER_CONFIG}) and not its base model", expected,
                              "set model.path or model.hub to the base model, and continue the adapter with "
                              f"method=lora {override_word('method.init_from', str(path))}")  # fmt: skip
        raise ConfigError(f"model.path={path} holds no config.json; {held}", expected,
                          "set model.path to the folder of the model, for example the export/ of a run")  # fmt: skip
    arch = read_model_json(path / "config.json")
    if "model_type" not in arch:
        raise ConfigError(f"{path}/config.json has no model_type", "the config.json of a transformers model",
                          "copy config.json from the model's repository")  # fmt: skip
    if (path / ADAPTER_CONFIG).is_file():
        # transformers would load the base model that the adapter names, from any location
        raise ConfigError(f"model.path={path} holds an adapter of another model ({ADAPTER_CONFIG})", "a complete model",
                          f"merge the adapter into its model, or remove {ADAPTER_CONFIG}")  # fmt: skip
    if not any(next(path.glob(pattern), None) for pattern in WEIGHTS):
        raise ConfigError(f"model.path={path} holds no weights; {held}", "*.safetensors or *.bin",
                          COPY)  # fmt: skip
    check_weight_files(path, arch)
    if not config.model.tokenizer and not any((path / name).is_file() for name in TOKENIZER):
        raise ConfigError(
            f"model.path={path} holds no tokenizer; {held}",
            "tokenizer.json",
            "copy the tokenizer's files there, or set model.tokenizer=FOLDER",
        )


def read_model_json(path: Path) -> dict[str, object]:
    """Return the object in a config.json.

    Raises:
        ConfigError: It is not JSON.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"{path} is not JSON: {error}",
            "the config.json of a transformers model",
            "copy the file from the model's repository",
        ) from error
    return value if isinstance(value, dict) else {}


def _gguf_digest(config: RunConfig) -> str:
    """Return the hash of a GGUF file. The file is read only once, see ``run/file_hashes.py``.

    Raises:
        ConfigError: See _gguf_file.
    """
    hashes = FileHashes(cache_root(config))
    with print_if_long("reading the GGUF file once, for the hash of its content", True):
        digest = hashes.of(_gguf_file(config))
    hashes.save()
    return digest


def _gguf_file(config: RunConfig) -> Path:
    """Return the path of the GGUF file.

    Raises:
        ConfigError: The file does not exist.
        AccessError: This user may not read it.
    """
    path = Path(str(config.model.path))
    require_access(path)
    try:
        path.stat()
    except OSError as error:
        near = " or ".join(override_word("model.path", place) for place in near_paths(str(path)))
        raise ConfigError(
            f"model.path={path}: {error.strerror}", "a .gguf file", near or "model.path=FILE.gguf"
        ) from error
    return path
