"""Prepared data in the cache: its folder, which is named by a hash of everything that changes the result.

Besides the run directory, the cache is the second thing that both planes read. It holds prepared data (``data/``,
described here), converted models (``models/``, see ``run/locations.py``), facts about models (``checked/``, see
``run/model_facts.py``), models that are installed as packages (``packages/``), and the hashes of files that were hashed
before (``hashes.json``, see ``run/file_hashes.py``). This module imports nothing heavy, so that prepared data is found
quickly.
"""

import hashlib
import json
import platform
import shutil
from dataclasses import asdict
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Dict, List, Optional

from ftdist.base.errors import ConfigError, DataError
from ftdist.base.json_files import read_json
from ftdist.base.output import quoted_path
from ftdist.base.permissions import explain_os_error
from ftdist.config.data import SOURCE_KINDS, SourceConfig, general_sources
from ftdist.config.schema import RunConfig
from ftdist.run.file_hashes import FileHashes
from ftdist.run.locations import cache_root, is_converted, tokenizer_location, tokenizer_revision
from ftdist.run.source_files import source_files

FORMAT_VERSION = 5
"""Version of prepared data. Increase it when the same settings give other tokens, or when the layout of the folder
changes."""

FIRST_FORMAT = 2
"""The format of the data of runs without inputs.json. This format and all later ones can still be read, because their
files have the same layout."""
FIRST_SETTINGS = {"heldout_share", "max_heldout_documents", "train_on", "max_seq_len", "packing", "long_documents"}
FIRST_SOURCE_SETTINGS = {"path", "hub", "builtin", "subset", "split", "revision", "format", "weight", "max_documents",
                         "python"}  # fmt: skip
"""The settings that were part of the key in that format."""

TEMPLATES = Path(__file__).parents[1] / "data"
"""Folder of the chat templates that ftdist ships."""
GENERAL_TEXTS = TEMPLATES / "general_texts.jsonl"
"""The built-in general texts. They were written for ftdist and have its license."""
GENERAL = "general"
"""Name of their source, of the folder of general sets in prepared data, and of their field in meta.json."""
META = "meta.json"
ROLES_FILE = "roles.u8"
"""The roles of the tokens of a held-out set. Data of earlier versions has no such file."""
BAD_RECORDS = "bad_records.jsonl"
"""List of the records that were dropped because they are bad. The file exists only if there are any."""
FIRST_TOKENIZER_FILES = ("token*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt",
                         "chat_template*", "additional_chat_templates/*")  # fmt: skip
"""The files of a tokenizer that older versions knew."""
TOKENIZER_FILES = (
    *FIRST_TOKENIZER_FILES, "*.model", "*.spm", "*.tiktoken", "*.codes", "*.tokenizer", "tekken.json", "dict.txt",
    "normalizer.json", "byte_maps.json", "emoji.json", "entity_vocab.json", "target_vocab.json", "word_*.json",
)  # fmt: skip
"""Patterns of all files that the tokenizers of transformers read, and of those that often come with code of their own.
Python files are added if the tokenizer may run code of its own."""


def data_folder(config: RunConfig) -> Path:
    """Return the folder of the prepared data of a config: ``<cache>/data/<hash>``. It does not have to exist.

    A data set on the hub is identified by the ``revision`` in the config. Without one, the data that was prepared first
    is used again, even if the data set has changed. The seed is part of the hash only if it chooses documents, which
    means that the weight of a source is not a whole number.

    Raises:
        DataError: A local source is missing, empty or of an unknown kind.
        ConfigError: The chat template does not exist.
    """
    return folder_of(config, key_parts(config))


def folder_of(config: RunConfig, parts: Dict[str, Any]) -> Path:
    """Return the folder of the prepared data with these parts of the key."""
    key = json.dumps(parts, sort_keys=True, default=lambda value: value.name)
    return cache_root(config) / "data" / hashlib.sha256(key.encode()).hexdigest()[:24]


def first_format_folder(config: RunConfig) -> Path:
    """Return the folder that the data of a config had in format 2, the first one that was released.

    Raises:
        DataError: See ``data_folder``.
    """
    parts = key_parts(config)
    later = set(parts["settings"]) - FIRST_SETTINGS
    for name in later:
        del parts["settings"][name]
    for source in (*parts["sources"].values(), *parts["heldout"].values()):
        for name in set(source) - FIRST_SOURCE_SETTINGS:
            del source[name]
    parts["tokenizer"] = [part for part in parts["tokenizer"] if not isinstance(part, tuple) or known_before(part[0])]
    return folder_of(config, {**parts, "version": FIRST_FORMAT})


def known_before(name: str) -> bool:
    """Return whether older versions knew this file of a tokenizer."""
    return any(fnmatch(name, pattern) for pattern in (*FIRST_TOKENIZER_FILES, "*.jinja"))


def content_hash(config: RunConfig, folder: Path) -> str:
    """Return a hash of all tokens, masks and rows of prepared data. Files that did not change are not read again.

    Roles do not count: earlier versions did not write them, and nothing is trained by them.
    """
    hashes = FileHashes(cache_root(config))
    files = sorted(path for depth in ("*/*", f"{GENERAL}/*/*") for path in folder.glob(depth)
                   if path.is_file() and path.name != ROLES_FILE)  # fmt: skip
    names = [str(path.relative_to(folder)) for path in files]
    text = json.dumps(list(zip(names, hashes.of_all(files), strict=True)))
    hashes.save()
    return hashlib.sha256(text.encode()).hexdigest()


def is_ready(folder: Path) -> bool:
    """Return whether a folder holds prepared data. Such a folder is complete, because it gets its name at the end."""
    return (folder / META).is_file()


def read_meta(folder: Path) -> Dict[str, Any]:
    """Return meta.json of prepared data: statistics, settings, the rendered sample and the sets.

    Raises:
        DataError: The file is not one that ``ftdist prepare`` writes.
        AccessError: This user may not read it.
    """
    try:
        meta = read_json(folder / META)
        rows = [found["rows"] for found in meta["sets"].values()]
        known = FIRST_FORMAT <= meta["format_version"] <= FORMAT_VERSION
        if not known or not all(isinstance(number, int) for number in rows):
            raise ValueError(f"format_version {meta['format_version']}, rows {rows}")
    except PermissionError as error:
        raise explain_os_error(error) from error
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise DataError(f"{folder / META} is not what ftdist writes: {error!r}", f"format_version {FORMAT_VERSION}",
                        f"delete the folder; it is prepared again: rm -r {quoted_path(folder)}") from error  # fmt: skip
    return meta


def copy_bad_records(folder: Path, run: Path) -> None:
    """Copy the list of dropped records from prepared data to a run directory, if there are any."""
    if (folder / BAD_RECORDS).is_file():
        shutil.copyfile(folder / BAD_RECORDS, run / BAD_RECORDS)


def template_text(config: RunConfig) -> Optional[str]:
    """Return the Jinja text of ``data.chat_template``, or None if the tokenizer's own template is used.

    Raises:
        ConfigError: It is neither the name of a template that ftdist ships nor a text file.
        FtdistError: The file cannot be read.
    """
    name = config.data.chat_template
    if name is None:
        return None
    shipped = {path.stem: path for path in TEMPLATES.glob("*.jinja")}
    path = shipped.get(name, Path(name).expanduser())
    try:
        if path.is_file():
            return path.read_text(encoding="utf-8")
    except OSError as error:
        raise explain_os_error(error) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"data.chat_template={name} cannot be read: {error}", "a Jinja file in UTF-8",
                          "save the file in UTF-8") from error  # fmt: skip
    raise ConfigError(f"data.chat_template={name} does not exist", f"{', '.join(sorted(shipped))}, or a Jinja file",
                      "data.chat_template=chatml, or the path of a Jinja file")  # fmt: skip


def key_parts(config: RunConfig) -> Dict[str, Any]:
    """Return everything that changes the result of the preparation."""
    data = config.data
    settings = asdict(data)
    for not_a_setting in (*SOURCE_KINDS, "builtin_general", "num_workers", "chat_template"):
        del settings[not_a_setting]
    hashes = FileHashes(cache_root(config))
    parts = {
        "version": FORMAT_VERSION,
        "settings": settings,
        "template": template_text(config),
        "tokenizer": tokenizer_key(config, hashes),
        "new_special_tokens": config.model.new_special_tokens,
        "sources": {name: source_key(f"data.sources.{name}", source, hashes) for name, source in data.sources.items()},
        "heldout": {name: source_key(f"data.heldout.{name}", source, hashes) for name, source in data.heldout.items()},
        "seed": config.seed if any(source.weight % 1 for source in data.sources.values()) else None,
    }
    if general := general_sources(data):  # without any, the key is that of earlier versions
        parts["general"] = {name: source_key(f"data.general.{name}", one, hashes) for name, one in general.items()}
    hashes.save()
    return parts


def source_key(where: str, source: SourceConfig, hashes: FileHashes) -> Dict[str, Any]:
    key = asdict(source)
    if source.path:
        files = source_files(where, source.path, source.split)
        key["path"] = list(zip([file.name for file in files], hashes.of_all(files), strict=True))
    if source.builtin == "stdlib_docs":
        key["python"] = platform.python_version()
    if source.builtin == GENERAL:
        key["texts"] = hashlib.sha256(GENERAL_TEXTS.read_bytes()).hexdigest()
    return key


def tokenizer_key(config: RunConfig, hashes: FileHashes) -> List[Any]:
    location = tokenizer_location(config)
    if not config.model.tokenizer and is_converted(config):
        # The name identifies the content, so that the hash is known before the model is converted.
        return [Path(location).name]
    if Path(location).is_dir():
        patterns = [*TOKENIZER_FILES, *["*.py"] * config.model.trust_remote_code]
        files = {file for pattern in patterns for file in Path(location).glob(pattern) if file.is_file()}
        return sorted((file.name, hashes.of(file)) for file in files)
    return [location, tokenizer_revision(config)]
