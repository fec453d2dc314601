"""The user's own defaults of a cluster, in one file: ``~/.config/ftdist/site.yaml``. Everything else overrides them.

It holds keys of the run config, for instance::

    launch:
      slurm: {account: my-project, partition: gpu, profile: infiniband}
"""

import os
from pathlib import Path
from typing import Any, Dict

import yaml

from ftdist.errors import ConfigError


def site_file() -> Path:
    """``$FTDIST_SITE``, else the file in the user's config folder."""
    folder = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return Path(os.environ.get("FTDIST_SITE") or folder / "ftdist" / "site.yaml")


def site_defaults() -> Dict[str, Any]:
    """What the site file holds; nothing where there is none.

    Raises:
        ConfigError: it is not a mapping in YAML.
    """
    path = site_file()
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read {path}: {error}", "a YAML file of run settings") from error
    if found is not None and not isinstance(found, dict):
        raise ConfigError(f"{path} holds {type(found).__name__}", "keys of the run config: launch: {slurm: {…}}")
    return found or {}
