"""The site file ``~/.config/ftdist/site.yaml``: a user's defaults for a cluster. Everything else overrides them.

It holds keys of the run config, for example::

    launch:
      slurm: {account: my-project, partition: gpu, profile: infiniband}
"""

import os
from pathlib import Path
from typing import Any, Dict, cast

import yaml
from omegaconf import DictConfig, OmegaConf

from ftdist.base.errors import ConfigError
from ftdist.base.permissions import explain_os_error
from ftdist.launch.config.yaml_text import TextLoader

EXPECTED = "a YAML file of run settings"


def site_file() -> Path:
    """Return the path of the site file: ``$FTDIST_SITE``, or ``ftdist/site.yaml`` in the user's config folder."""
    folder = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return Path(os.environ.get("FTDIST_SITE") or folder / "ftdist" / "site.yaml")


def site_defaults() -> DictConfig:
    """Return what the site file holds. It is empty if there is no such file.

    Raises:
        FtdistError: The file cannot be read.
        ConfigError: It is not a mapping in YAML.
    """
    return cast(DictConfig, OmegaConf.create(_text())) if site_texts() else OmegaConf.create({})


def site_texts() -> Dict[str, Any]:
    """Return what the site file holds, with each value as the text that is written in the file.

    Raises:
        ConfigError: See site_defaults.
    """
    path = site_file()
    try:
        found = yaml.load(_text(), TextLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"cannot read {path}: {error}", EXPECTED, f"correct {path}") from error
    if found is not None and not isinstance(found, dict):
        raise ConfigError(
            f"{path} holds {type(found).__name__}",
            "keys of the run config, for example launch: {slurm: {…}}",
            f"correct {path}",
        )
    return found or {}


def _text() -> str:
    path = site_file()
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise explain_os_error(error) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"cannot read {path}: {error}", EXPECTED, f"correct {path}") from error
