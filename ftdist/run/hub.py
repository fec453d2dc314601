"""Determine, without network access, what a run reads from the Hugging Face hub and whether the hub's cache has it all.

The layout of the cache: https://huggingface.co/docs/huggingface_hub/guides/manage-cache
"""

import json
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional

from ftdist.base.json_files import read_json
from ftdist.base.names import require_utf8
from ftdist.base.permissions import require_access
from ftdist.config.data import named_sources
from ftdist.config.schema import RunConfig
from ftdist.run.locations import TOKENIZER, model_location
from ftdist.run.prepared import data_folder, is_ready
from ftdist.run.weight_files import INDEXES, SINGLE_FILES

OFFLINE = "HF_HUB_OFFLINE"
"""Environment variable that keeps huggingface_hub, transformers and datasets from making requests."""
COMMIT = re.compile("[0-9a-f]{40}")


@dataclass(frozen=True)
class Repository:
    """A repository on the hub that a run reads a model or a tokenizer from."""

    key: str
    """The setting that names it."""
    name: str
    revision: Optional[str]
    holds_model: bool
    """Whether the model is read from it, not only the tokenizer."""


def repositories(config: RunConfig) -> List[Repository]:
    """Return the repositories that the model and the tokenizer of a run are read from."""
    model, found = config.model, []
    if model.hub:
        found.append(Repository("model.hub", model.hub, model.revision, True))
    if model.tokenizer and model.tokenizer != "bytes" and not _is_path(model.tokenizer):
        found.append(Repository("model.tokenizer", model.tokenizer, model.tokenizer_revision, False))
    return found


def _is_path(name: str) -> bool:
    return name.startswith("/") or Path(name).exists()


def has_hub_data(config: RunConfig) -> bool:
    """Return whether a source of the data is on the hub."""
    return any(source.hub for source in named_sources(config.data).values())


def hub_commit(name: str, revision: Optional[str]) -> Optional[str]:
    """Return the commit of a model in the cache of the hub, or None if it is not known."""
    if revision and COMMIT.fullmatch(revision):
        return revision
    reference = _folder(name) / "refs" / (revision or "main")
    return reference.read_text(encoding="utf-8").strip() if reference.is_file() else None


def fetched_folder(repository: Repository) -> Optional[Path]:
    """Return the folder of a repository in the cache of the hub, or None if it lacks a file that a run needs."""
    commit = hub_commit(repository.name, repository.revision)
    folder = _folder(repository.name) / "snapshots" / str(commit)
    has_tokenizer = any((folder / name).is_file() for name in TOKENIZER)
    if repository.holds_model:
        return folder if (folder / "config.json").is_file() and _has_weights(folder) else None
    return folder if has_tokenizer else None


def model_folder(config: RunConfig) -> Optional[Path]:
    """Return the folder that the model is loaded from. None if it has random weights, or if the cache of the hub lacks
    it."""
    if config.model.hub:
        return fetched_folder(Repository("model.hub", config.model.hub, config.model.revision, True))
    return Path(location) if (location := model_location(config)) else None


def is_fetched(config: RunConfig) -> bool:
    """Return whether the model and the tokenizer of a run can be loaded without a network."""
    return all(fetched_folder(repository) for repository in repositories(config))


def offline_env(config: RunConfig) -> Dict[str, str]:
    """Return the environment variable that keeps the programs of a run from asking the hub, if the cache holds all
    that they read.

    The result is empty if nothing comes from the hub, if something is missing, or if the user has set the variable.
    """
    if OFFLINE in os.environ or not (repositories(config) or has_hub_data(config)) or not is_fetched(config):
        return {}
    folders = [folder for one in repositories(config) if (folder := fetched_folder(one))]
    if any(_other_code(folder / name) for folder in folders for name in ("config.json", "tokenizer_config.json")):
        return {}
    return {OFFLINE: "1"} if not has_hub_data(config) or is_ready(data_folder(config)) else {}


def reads_only_hub_cache(config: RunConfig) -> bool:
    """Return whether the programs of a run read only the cache of the hub: because of ``offline_env``, or because the
    user has set the variable."""
    if not (repositories(config) or has_hub_data(config)):
        return False
    return OFFLINE in offline_env(config) or told_to_be_offline()


def told_to_be_offline() -> bool:
    """Return whether the user forbids access to the hub. Accepts the same values of the variable as huggingface_hub."""
    return os.environ.get(OFFLINE, "").upper() in ("1", "ON", "YES", "TRUE")


def hub_cache() -> Path:
    """Return the folder of the cache of the hub.

    Raises:
        ConfigError: Its name is not in UTF-8, as the libraries that read it require.
    """
    home = Path(os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    folder = Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser().absolute()
    require_utf8("the cache of the Hugging Face hub (HF_HOME)", folder)
    return folder


def require_writable_hub_cache(repository: Repository) -> None:
    """Check that a repository can be fetched into the cache of the hub. It may belong to another user.

    Raises:
        AccessError: This user may not write there.
    """
    folder = _folder(repository.name)
    require_access(next(place for place in (folder, *folder.parents) if place.exists()), write=True)


def _folder(name: str) -> Path:
    return hub_cache() / f"models--{name.replace('/', '--')}"


def _other_code(file: Path) -> bool:
    """Return whether a config names Python code of another repository (``ORG/NAME--file.Class``), which is not
    fetched."""
    return file.is_file() and "--" in json.dumps(_object(file).get("auto_map", {}))


def _has_weights(folder: Path) -> bool:
    for index in INDEXES:
        if (folder / index).is_file():
            places = _object(folder / index).get("weight_map")
            files = set(places.values()) if isinstance(places, dict) else set()
            return all((folder / str(name)).is_file() for name in files)
    return any((folder / name).is_file() for name in SINGLE_FILES)


def _object(file: Path) -> Dict[str, Any]:
    """Return the object in a JSON file. A damaged file counts as an empty object, and the code that needs its content
    refuses it."""
    with suppress(ValueError, RecursionError):
        return read_json(file)
    return {}
