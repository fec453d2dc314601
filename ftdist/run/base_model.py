"""The identity of the base model of a run: the hashes of its files, or the commit on the hub.

``RUN_DIR/inputs.json`` records it (``ftdist.run.identity``), and so do checkpoints and adapters, which hold only the
trained part of a model.
"""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, List

from ftdist.config.schema import RunConfig
from ftdist.run.adapters import FOLDED, INIT_FROM, adapter_content, check_base_of
from ftdist.run.file_hashes import FileHashes
from ftdist.run.file_names import GENERATION_CONFIG
from ftdist.run.hub import hub_commit
from ftdist.run.locations import cache_root, is_converted, is_gguf, model_location

Record = Dict[str, Any]
BLOCK, BLOCKS = 1 << 16, 64
"""Size in bytes and number of the blocks of a weights file that older versions hashed, and a submission does."""
WEIGHTS = (".safetensors", ".bin")
MODEL_FILES = ("config.json", GENERATION_CONFIG, "*.py", "*.safetensors", "*.bin")


def base_identity(config: RunConfig, folded: bool = True, first: bool = False, drawn: bool = False) -> str:
    """Return a hash that identifies the weights of the base model. Checkpoints that hold only the trained part record
    it.

    It covers the files of the model, the commit of a model on the hub, or the config and the seed of random weights.

    Args:
        folded: Whether the adapter that is added to the model (``model.adapter``) is a part of it.
        first: As older versions computed it.
        drawn: Random weights have vectors that are drawn (``ftdist.model.random_weights``). Older versions drew others.
    """
    model, hashes = config.model, FileHashes(cache_root(config))
    files = first_model_files(config) if first else model_files(config, hashes)
    hashes.save()
    if isinstance(files, dict):
        files.pop(GENERATION_CONFIG, None)
    random: Record = {"config": model.config, "seed": config.seed} if model.config else {}
    found: Record = {"files": files, "hub": model.hub, **random, **({"drawn vectors": 1} if drawn else {})}
    if folded and model.adapter:
        found["adapter"] = adapter_content(model.adapter, hashes)
    return hashlib.sha256(json.dumps(found, sort_keys=True, default=str).encode()).hexdigest()


def check_adapter_bases(config: RunConfig) -> None:
    """Check that the adapters a run starts from were trained on its base model.

    An adapter that is gone is not an error here: a run that has a checkpoint no longer reads ``method.init_from``.

    Raises:
        ConfigError: One of them was trained on another model.
    """
    for key, given, folded in ((FOLDED, config.model.adapter, False), (INIT_FROM, config.method.init_from, True)):
        if given and Path(given).is_dir():
            drawn = (False, True) if config.model.config else (False,)
            names = [config, *_as_converted(config)]
            bases = [
                base_identity(one, folded, first, new) for one in names for first in (False, True) for new in drawn
            ]
            check_base_of(key, given, bases)


def _as_converted(config: RunConfig) -> List[RunConfig]:
    """Return a config that names the same base model as the run that converted it, if it is a converted folder in the
    cache. Adapters of a built-in model and of GGUF files name this folder as their base model."""
    folder = Path(config.model.path or "")
    if not config.model.path or folder.absolute().parent != cache_root(config).absolute() / "models":
        return []
    return [replace(config, model=replace(config.model, path=None, builtin=folder.name))]


def model_files(config: RunConfig, hashes: FileHashes) -> Any:
    if config.model.config:
        return {}  # run.yaml holds it
    location = model_location(config)
    if is_converted(config):
        return Path(location).name  # the name identifies the content
    if not config.model.path:
        return hub_commit(location, config.model.revision) or config.model.revision or "main"
    files = _files_of_model(location)
    return dict(zip([path.name for path in files], hashes.of_all(files), strict=True))


def _files_of_model(location: str) -> List[Path]:
    return sorted({path for pattern in MODEL_FILES for path in Path(location).glob(pattern) if path.is_file()})


def first_model_files(config: RunConfig) -> Any:
    """Return the identity of a model as older versions recorded it, and a submission does, without reading it all."""
    if not config.model.path:
        return None
    if is_gguf(config.model.path):
        return first_gguf(config)
    hashes = FileHashes(cache_root(config))
    files = _files_of_model(config.model.path)
    return {path.name: _sampled(path) if path.suffix in WEIGHTS else hashes.of(path) for path in files}


def first_gguf(config: RunConfig) -> str:
    """Return the name of a converted model in older versions: the size and time of the GGUF file are its identity."""
    path = Path(str(config.model.path))
    text = f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}" if path.exists() else ""
    return f"{path.stem}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _sampled(path: Path) -> str:
    """Return a hash of the size of a file and of blocks that are evenly spread over it."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    step = max(BLOCK, size // BLOCKS)
    with path.open("rb") as file:
        for start in range(0, size, step):
            file.seek(start)
            digest.update(file.read(BLOCK))
    return digest.hexdigest()
