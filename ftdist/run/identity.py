"""The identity of a run's inputs. ``RUN_DIR/inputs.json`` records its prepared data, its model and its tokenizer.

A resume trains on the data that the run began with, even if the source files have changed since. The data is found in
the cache by the recorded key, or it is prepared again and compared. If that is not possible, the resume is refused, and
the message says what has changed.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Any, Dict, List, Optional

from ftdist.base.counts import count
from ftdist.base.errors import ConfigError, DataError
from ftdist.base.json_files import read_json, write_json
from ftdist.base.output import quoted_path
from ftdist.config.data import named_sources
from ftdist.config.schema import RunConfig
from ftdist.run.adapters import FOLDED, INIT_FROM, adapter_content
from ftdist.run.base_model import first_gguf, first_model_files, model_files
from ftdist.run.file_hashes import FileHashes
from ftdist.run.hub import hub_commit, repositories
from ftdist.run.locations import cache_root, is_converted, is_gguf
from ftdist.run.prepared import (
    FIRST_FORMAT,
    FORMAT_VERSION,
    content_hash,
    data_folder,
    first_format_folder,
    is_ready,
    known_before,
    read_meta,
    source_key,
    template_text,
    tokenizer_key,
)
from ftdist.run.rundir import RunDir

Record = Dict[str, Any]
KEY = re.compile("[0-9a-f]{24}")
"""The name of a folder of prepared data."""
NEW_RUN = "restore it, or start a new run"


def read_inputs(run: RunDir) -> Optional[Record]:
    """Return the content of inputs.json, or None for a run that an older version of ftdist started.

    Raises:
        ConfigError: The file is not one that ftdist writes.
    """
    if not run.inputs.is_file():
        return None
    try:
        found = read_json(run.inputs)
        if problem := _problem(found):
            raise ValueError(problem)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{run.inputs} is damaged: {error}", "the file that ftdist wrote", NEW_RUN) from error
    return found


def _problem(record: Record) -> str:
    """Return what is wrong with the content of inputs.json, or an empty text if it is valid."""
    for name, kinds in (("format_version", (int,)), ("data", (dict, type(None))), ("files", (dict,))):
        if name not in record or not isinstance(record[name], kinds):
            return f"{name} is {'missing' if name not in record else 'not what it should be'}"
    data = record["data"]
    if data is None:
        return ""
    key, rows = data.get("key"), data.get("rows")
    if not isinstance(key, str) or not KEY.fullmatch(key) or not isinstance(data.get("sha256"), str):
        return "data has no valid key and sha256"
    numbers = list(rows.values()) if isinstance(rows, dict) and "train" in rows else [None]
    return "" if all(isinstance(number, int) for number in numbers) else "data has no valid numbers of rows"


def record_inputs(run: RunDir, config: RunConfig, folder: Optional[Path]) -> None:
    """Write inputs.json.

    Args:
        folder: The prepared data, or None if a job prepares it later.
    """
    data = None
    if folder is not None:
        data = {
            "key": folder.name,
            "rows": _rows(folder),
            "sha256": content_hash(config, folder),
            "meta": _used(folder),
        }
    files = describe_files(config, samples=folder is None)
    version = read_meta(folder)["format_version"] if folder is not None else FORMAT_VERSION
    write_json(run.inputs, {"format_version": version, "data": data, "files": files})


def recorded_folder(run: RunDir, config: RunConfig) -> Path:
    """Return the folder of a run's prepared data. Its key is recorded in the run, or else follows from the config.

    Raises:
        DataError: See ``data_folder``.
    """
    record = read_inputs(run)
    if record is not None and record["data"] is not None:
        return cache_root(config) / "data" / str(record["data"]["key"])
    if record is None and is_ready(folder := first_format_folder(config)):
        return folder
    return data_folder(config)


def may_prepare(run: RunDir, config: RunConfig) -> None:
    """Check that the data of a started run can be prepared again after it was removed from the cache.

    Raises:
        DataError: The data was prepared in an older format, or from other files. The message names them.
    """
    record = read_inputs(run)
    version = FIRST_FORMAT if record is None else record["format_version"]
    if version != FORMAT_VERSION:
        raise DataError(
            f"the data of {run.path} was prepared by an older format ({version}; this ftdist writes {FORMAT_VERSION}), "
            f"and is no longer in the cache {cache_root(config)}", "the prepared data of the run",
            "restore the cache, resume with the ftdist that began the run, or start a new run",
        )  # fmt: skip
    if record is not None and (changed := changed_files(record, config, "data.")):
        raise DataError(f"the data of {run.path} is no longer in the cache and cannot be prepared again: {changed[0]}",
                        "the files that the run was started with", NEW_RUN)  # fmt: skip


def check_data(run: RunDir, config: RunConfig, folder: Path) -> None:
    """Check that prepared data is the data that the run was started with.

    Raises:
        DataError: The content is different.
    """
    record = read_inputs(run)
    if record is None or record["data"] is None:
        return
    before, now = record["data"], _rows(folder)
    same_meta = before["rows"] == now and before.get("meta", _used(folder)) == _used(folder)
    if same_meta and before["sha256"] == content_hash(config, folder):
        return
    rows = now["train"]
    unpinned = [name for name, source in config.data.sources.items() if source.hub and not source.revision]
    cause = f"; the hub data set of '{unpinned[0]}' has no revision and may have changed" if unpinned else ""
    raise DataError(
        f"{folder} is not the data that {run.path} was started with ({count(rows, 'row')}; at the start "
        f"{record['data']['rows']['train']:,}){cause}", "data with the recorded hash",
        f"rm -r {quoted_path(folder)}, then resume, so that the data is prepared again. Or start a new run",
    )  # fmt: skip


def _rows(folder: Path) -> Dict[str, int]:
    return {name: found["rows"] for name, found in read_meta(folder)["sets"].items()}


def _used(folder: Path) -> str:
    """Return a hash of the parts of meta.json that a training uses. The other parts describe the preparation."""
    meta = read_meta(folder)
    return hashlib.sha256(json.dumps([meta["sets"], meta.get("prompts")], sort_keys=True).encode()).hexdigest()


def check_files(run: RunDir, config: RunConfig) -> None:
    """Check that the model, the tokenizer and the chat template are those that the run was started with.

    Raises:
        ConfigError: One of them has changed. The message names the first one.
    """
    record, kinds = read_inputs(run), ["model", "chat template", "tokenizer"]
    if not run.checkpoint_folders():  # a checkpoint holds the trained adapter, so the original one is no longer needed
        kinds.append(INIT_FROM)
    if record is not None and (changed := changed_files(record, config, *kinds)):
        raise ConfigError(f"{run.path} was started with other files: {changed[0]}",
                          "the files that the run was started with", NEW_RUN)  # fmt: skip


def changed_files(record: Record, config: RunConfig, *kinds: str) -> List[str]:
    """Return one line for each input that has changed since the run was started. Only names that begin with ``kinds``
    are compared."""
    now, found = describe_files(config), []
    if now["model"] != record["files"].get("model") == first_model_files(config):
        now["model"] = record["files"]["model"]
    if config.model.path and is_gguf(config.model.path) and record["files"].get("tokenizer") == [first_gguf(config)]:
        now["tokenizer"] = record["files"]["tokenizer"]
    if isinstance(tokenizer := record["files"].get("tokenizer"), dict) and isinstance(now["tokenizer"], dict):
        now["tokenizer"] = {
            name: digest for name, digest in now["tokenizer"].items() if name in tokenizer or known_before(name)
        }
    for name, before in record["files"].items():
        if name.startswith(kinds) and now.get(name) != before:
            found.append(f"{name} {_difference(before, now.get(name))}")
    return found


def _difference(before: Any, now: Any) -> str:
    if isinstance(now, str) and now.startswith("gone: "):
        return f"is {now}"
    if isinstance(before, dict) and isinstance(now, dict):
        names = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
        how = "is gone" if names[0] not in now else "is new" if names[0] not in before else "has changed"
        return f"{names[0]} {how}"
    return f"has changed from {before} to {now}" if isinstance(before, str) and len(before) < 80 else "has changed"


def describe_files(config: RunConfig, samples: bool = False) -> Record:
    """Return the identity of everything that a run reads, by name: hashes of files, commits on the hub.

    Args:
        samples: Read only samples of the weights, on a login node that submits a job. The job reads the whole files.
    """
    hashes = FileHashes(cache_root(config))
    samples = samples and bool(config.model.path) and not is_converted(config)
    model = first_model_files(config) if samples else model_files(config, hashes)
    found: Record = {"model": model, "tokenizer": _tokenizer_files(config, hashes)}
    for setting, given in ((FOLDED, config.model.adapter), (INIT_FROM, config.method.init_from)):
        if given:
            found[setting] = adapter_content(given, hashes)
    try:
        found["chat template"] = hashlib.sha256((template_text(config) or "").encode()).hexdigest()
    except ConfigError as error:
        found["chat template"] = f"gone: {error.found}"
    for where, source in named_sources(config.data).items():
        try:
            key = source_key(where, source, hashes)
            found[where] = _plain(key["path"] if source.path else key)
        except DataError as error:
            found[where] = f"gone: {error.found}"
    hashes.save()
    return dict(json.loads(json.dumps(found)))


def _tokenizer_files(config: RunConfig, hashes: FileHashes) -> Any:
    name = config.model.tokenizer
    if name and name.startswith("/") and not Path(name).exists():
        return f"gone: model.tokenizer={name} does not exist"
    if name and not Path(name).is_dir():
        return hub_commit(name, config.model.tokenizer_revision) or name
    return _plain(tokenizer_key(config, hashes))


def _plain(key: Any) -> Any:
    """Return a part of a key as JSON, with lists of (name, hash) as a dict."""
    if isinstance(key, list) and all(isinstance(pair, tuple) for pair in key) and len(dict(key)) == len(key):
        return dict(key)
    return json.loads(json.dumps(key, default=lambda value: value.name))


def pin_revision(config: RunConfig) -> None:
    """Replace the branches of a model and a tokenizer on the hub by their current commits, in place. Later commits
    then do not change the run."""
    for one in repositories(config):
        if commit := hub_commit(one.name, one.revision):
            setattr(config.model, "revision" if one.holds_model else "tokenizer_revision", commit)
