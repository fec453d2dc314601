"""The user's own defaults of a cluster, in one file: ``~/.config/ftdist/site.yaml``. Everything else overrides them.

It holds keys of the run config, for instance::

    launch:
      slurm: {account: my-project, partition: gpu, profile: infiniband}
"""

import os
from pathlib import Path
from typing import Any, Dict, Iterator, Tuple, Type

import yaml

from ftdist.base.errors import ConfigError


def site_file() -> Path:
    """``$FTDIST_SITE``, else the file in the user's config folder."""
    folder = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return Path(os.environ.get("FTDIST_SITE") or folder / "ftdist" / "site.yaml")


def site_defaults(loader: Type[yaml.BaseLoader] | Type[yaml.SafeLoader] = yaml.SafeLoader) -> Dict[str, Any]:
    """What the site file holds; nothing where there is none.

    Raises:
        ConfigError: it is not a mapping in YAML.
    """
    path = site_file()
    try:
        found = yaml.load(path.read_text(encoding="utf-8"), loader)
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read {path}: {error}", "a YAML file of run settings") from error
    if found is not None and not isinstance(found, dict):
        raise ConfigError(f"{path} holds {type(found).__name__}", "keys of the run config: launch: {slurm: {…}}")
    return found or {}


def refuse_misread(config: Dict[str, Any]) -> None:
    """YAML takes ``12:00:00`` for 43200 and ``yes`` for true; as a text they would be ``43200`` and ``True``.

    Args:
        config: what became of the site file in the run config.

    Raises:
        ConfigError: a text in it is not what is written in the file.
    """
    for key, written, read in _pairs("", site_defaults(yaml.BaseLoader), config):
        if isinstance(read, str) and read != written:
            raise ConfigError(f"{site_file()}: {key} would be {read!r}", "text as it is written",
                              f'quote it: {key.rpartition(".")[2]}: "{written}"')  # fmt: skip


def _pairs(key: str, written: Any, read: Any) -> Iterator[Tuple[str, Any, Any]]:
    """Every value that is written, with its key and what was made of it."""
    if isinstance(written, dict) and isinstance(read, dict):
        for name, value in written.items():
            yield from _pairs(f"{key}.{name}" if key else name, value, read.get(name))
    elif isinstance(written, list) and isinstance(read, list):
        for value, made in zip(written, read, strict=True):
            yield from _pairs(key, value, made)
    else:
        yield key, written, read
