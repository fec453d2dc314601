"""Where each value of a composed config comes from: the file or command line that set it last, and its text in the
file."""

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple

import yaml
from hydra.core.config_loader import ConfigLoader
from hydra.core.default_element import ResultDefault
from omegaconf import DictConfig

from ftdist.launch.config import hydra_private, site
from ftdist.launch.config.session import SCHEMA
from ftdist.launch.config.yaml_text import TextLoader

COMMAND_LINE = "on the command line"


@dataclass(frozen=True)
class Origin:
    """The last place that set a value."""

    order: int
    """Position in the order in which Hydra merges: site file, groups, experiment, command line. The last one wins."""
    where: str
    """The place in words: ``in experiment/demo.yaml``."""
    is_default: bool
    """Whether the value comes from the file of a group or from the site file, not from an experiment or the user."""
    text: Any
    """The value as it is written in a file: a str, or a list of them. None for the command line."""

    @property
    def file(self) -> str:
        """The file. Empty for the command line."""
        return self.where.removeprefix("in ") if self.where != COMMAND_LINE else ""


def find_origins(composed: DictConfig, loader: ConfigLoader) -> Dict[str, Origin]:
    """Return the origin of each dotted key that a file or the command line sets.

    Args:
        composed: What Hydra composed, with its own node ``hydra``.
        loader: The loader that composed it.
    """
    defaults = hydra_private.defaults_list(composed, loader)
    origins: Dict[str, Origin] = {}
    for order, default in enumerate(defaults.defaults):
        where, tree = _content(default, composed.hydra.runtime.config_sources)
        prefix = default.package or ""
        # An experiment and a primary config hold keys of the whole run; the file of a group, those of its group.
        is_default = default.config_path == SCHEMA or bool(prefix)
        for key, text in _leaves(prefix, tree):
            origins[key] = Origin(order, where, is_default, text)
    for override in defaults.config_overrides:
        if not override.is_delete():
            for key, _ in _leaves(override.key_or_group, override.value()):
                origins[key] = Origin(len(defaults.defaults), COMMAND_LINE, False, None)
    return origins


def _leaves(key: str, value: Any) -> Iterator[Tuple[str, Any]]:
    """Iterate over the dotted keys below ``key`` and their values. A list is one value."""
    if not isinstance(value, dict):
        yield key, value
        return
    for name, item in value.items():
        yield from _leaves(f"{key}.{name}" if key else str(name), item)


def _content(default: ResultDefault, sources: List[DictConfig]) -> Tuple[str, Dict[str, Any]]:
    """Return the place of one entry of the defaults list in words, and what is written there."""
    if default.config_path == SCHEMA:
        return f"in {site.site_file()}", site.site_texts()
    name = default.config_path if default.config_path.endswith((".yaml", ".yml")) else f"{default.config_path}.yaml"
    text = next((text for source in sources if (text := _read(source, name)) is not None), "")
    tree = yaml.load(text, TextLoader)
    if not isinstance(tree, dict):
        tree = {}
    tree.pop("defaults", None)
    return f"in {name}", tree


def _read(source: DictConfig, name: str) -> Optional[str]:
    """Return the text of a config file in one of Hydra's sources. None if the source has no such file."""
    if source.schema == "file":
        path: Any = Path(source.path) / name
    elif source.schema == "pkg" and not source.path.startswith("hydra."):
        try:
            path = resources.files(source.path).joinpath(name)
        except (ImportError, TypeError):  # hydra.searchpath names a package that does not exist; Hydra warns
            return None
    else:  # Hydra's own files, and configs that are Python objects
        return None
    return path.read_text(encoding="utf-8") if path.is_file() else None
