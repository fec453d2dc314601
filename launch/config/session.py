"""Hydra, set up for one command: where it finds config files, and how its errors are reported.

Hydra is used through its public interface: ``hydra.initialize_config_module``, ``hydra.core`` and ``hydra.plugins``.
The exceptions are in ``hydra_private.py``.
"""

from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, Iterator, Optional

import yaml
from hydra import initialize_config_module
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import ConfigSearchPath, SearchPathQuery
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from ftdist.base.errors import ConfigError
from ftdist.launch.config import hydra_private, messages

PRIMARY = "run"
SCHEMA = "run_schema"
"""Name of the schema in Hydra's config store. It is the first entry of ``conf/run.yaml``."""
HYDRA_ERRORS = (HydraException, OmegaConfBaseException, ValueError)
"""What Hydra raises for a wrong config. A ValueError comes from ``group=3``."""


class UserFolder(SearchPathPlugin):
    """Puts the folder of ``--config-dir`` before the options that ftdist ships."""

    folder: ClassVar[Optional[Path]] = None

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        if self.folder is not None:
            search_path.prepend("command-line", f"file://{self.folder}", SearchPathQuery(provider="main"))


@contextmanager
def session(config_dir: Optional[str], schema: DictConfig) -> Iterator[ConfigLoader]:
    """Start Hydra and return its config loader.

    Args:
        config_dir: The folder of ``--config-dir``.
        schema: The schema with its defaults.

    Raises:
        ConfigError: There is no such folder. An error that Hydra raises inside the ``with`` block is also raised as a
            ConfigError, in ftdist's words.
    """
    if config_dir is not None and not Path(config_dir).is_dir():
        raise ConfigError(f"--config-dir {config_dir} is not a folder", "a folder with config files",
                          "create the folder, or correct its path")  # fmt: skip
    ConfigStore.instance().store(name=SCHEMA, node=schema)
    Plugins.instance().register(UserFolder)
    UserFolder.folder = None if config_dir is None else Path(config_dir).resolve()
    GlobalHydra.instance().clear()
    initialized = initialize_config_module("ftdist.conf", job_name="ftdist", version_base="1.3")
    with initialized, hydra_private.remembered_defaults():
        loader = GlobalHydra.instance().config_loader()
        try:
            yield loader
        except HYDRA_ERRORS as error:
            raise messages.config_error(error, loader) from error
        except yaml.YAMLError as error:
            file = getattr(getattr(error, "problem_mark", None), "name", "a config file")
            raise ConfigError(
                f"cannot parse {file} as YAML: {error}", "a valid YAML file", f"correct {file}"
            ) from error
        finally:
            UserFolder.folder = None
            GlobalHydra.instance().clear()
