"""Compose a RunConfig from the words of a command line, with Hydra. Ranks do not compose: they read run.yaml.

Only the modules of this package, ``ftdist.launch.config``, use Hydra.
"""

import argparse
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from typing import Any, Dict, List, Optional

import yaml
from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, flag_override
from omegaconf.errors import OmegaConfBaseException

from ftdist.base.errors import ConfigError, FtdistError
from ftdist.config.checks import check_config
from ftdist.config.data import DataConfig
from ftdist.config.schema import RunConfig
from ftdist.launch.config import hydra_private, keys, messages, site
from ftdist.launch.config.adapter import take_adapter
from ftdist.launch.config.origins import find_origins
from ftdist.launch.config.places import remember_files
from ftdist.launch.config.precedence import settle
from ftdist.launch.config.session import PRIMARY, SCHEMA, session
from ftdist.launch.config.texts import quote_texts, restore_texts
from ftdist.plan.warmup import fit_warmup

NOTHING = object()


@dataclass
class _OpenData(DataConfig):
    # Hydra cannot add an item of a dataclass type. The types of sources are checked when the RunConfig is made.
    sources: Dict[str, Any] = field(default_factory=dict)
    heldout: Dict[str, Any] = field(default_factory=dict)
    general: Dict[str, Any] = field(default_factory=dict)


@dataclass
class _Schema(RunConfig):
    data: _OpenData = field(default_factory=_OpenData)


@lru_cache
def _structured(kind: type) -> DictConfig:
    """Return a dataclass of the config as a node with its defaults. All callers share it: merge it, which copies it."""
    return OmegaConf.structured(kind)


def schema(config: Optional[RunConfig] = None) -> DictConfig:
    """Return the schema with its defaults: the site file's, or the values of a frozen config.

    Raises:
        ConfigError: The site file holds something that is not in the schema.
    """
    node = _structured(_Schema)
    if config is None:
        try:
            node = OmegaConf.merge(node, site.site_defaults())
        except (OmegaConfBaseException, yaml.YAMLError) as error:
            found = f"{site.site_file()}: {(str(error).splitlines() or [''])[0]}"
            raise ConfigError(found, "keys and values of the run config", f"correct {site.site_file()}") from error
    else:
        node = OmegaConf.merge(node, OmegaConf.to_container(OmegaConf.structured(config)))
    for free in keys.FREE_MAPPINGS:  # users add keys to them, so that `data.sources.mine.path=…` needs no `+`
        OmegaConf.set_struct(OmegaConf.select(node, free), False)
    return node


def add_arguments(parser: argparse.ArgumentParser, sweep: bool = False) -> None:
    """Add Hydra's own flags to the parser of a verb that starts from a config.

    Args:
        parser: The parser of the verb.
        sweep: Whether the verb takes ``--multirun``.
    """
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="group=option, key=value, +key=value, ~key")
    parser.add_argument("--config-dir", "-cd", metavar="DIR", 
                        help="folder with your own config files; it is searched before the built-in files")  # fmt: skip
    parser.add_argument("--config-name", "-cn", metavar="NAME", default=PRIMARY, help="another primary config")
    parser.add_argument("--cfg", "-c", choices=["job", "hydra", "all"], help="print the config and exit")
    parser.add_argument("--resolve", action="store_true", help="with --cfg: resolve interpolations")
    parser.add_argument("--package", "-p", metavar="KEY", help="with --cfg: only this part")
    parser.add_argument("--info", "-i", nargs="?", const="all", metavar="WHAT",
                        choices=["all", "config", "defaults", "defaults-tree", "plugins", "searchpath"],
                        help="print Hydra's information about the config (defaults, plugins, …) and exit")  # fmt: skip
    if sweep:
        parser.add_argument("--multirun", "-m", action="store_true", help="one run for each combination: key=1,2")


def compose(args: argparse.Namespace) -> RunConfig:
    """Return the config of a command line.

    Raises:
        ConfigError: A key, an option or a value is wrong. The message has the nearest right one.
    """
    messages.refuse_hydras_own(args.overrides, sweep=False)
    with session(args.config_dir, schema()) as loader:
        composed = loader.load_configuration(args.config_name, quote_texts(args.overrides), RunMode.RUN)
        complete_composed(composed, loader)
        return to_run_config(composed)


def complete_composed(composed: DictConfig, loader: ConfigLoader) -> None:
    """Post-process the composed config, in place. If two mutually exclusive settings are set, keep the more specific
    one. Restore text values that YAML read as numbers. Remember the files that set values, for errors.
    """
    origins = find_origins(composed, loader)
    remember_files({key: origin.file for key, origin in origins.items() if origin.file})
    settle(composed, origins)
    restore_texts(composed, origins)
    take_adapter(composed, origins)


def to_run_config(composed: DictConfig) -> RunConfig:
    """Convert the composed config to a RunConfig and check it.

    Raises:
        ConfigError: A value is missing, of the wrong type, or out of range.
    """
    plain = {key: value for key, value in composed.items_ex(resolve=False) if key != "hydra"}
    tree = OmegaConf.create(plain)
    OmegaConf.resolve(tree)
    missing = sorted(OmegaConf.missing_keys(tree))
    if missing:
        value = "FILE" if missing[0].endswith(".path") else "VALUE"
        raise ConfigError(f"{missing[0]} is not set", "a value", f"add {missing[0]}={value}")
    untyped = OmegaConf.to_container(tree, enum_to_str=True)  # so that a key added with `+` is checked again
    assert isinstance(untyped, dict)
    messages.check_source_keys(untyped["data"])
    config = OmegaConf.to_object(OmegaConf.merge(_structured(RunConfig), untyped))
    assert isinstance(config, RunConfig)
    check_config(config)
    return config


def change(config: RunConfig, overrides: List[str]) -> RunConfig:
    """Return a frozen config with ``key=value`` overrides applied.

    Raises:
        ConfigError: An override is wrong.
    """
    with session(None, schema(config)) as loader:
        return to_run_config(loader.load_configuration(SCHEMA, quote_texts(overrides), RunMode.RUN))


def show(args: argparse.Namespace) -> None:
    """Print what ``--cfg`` and ``--info`` ask for.

    Raises:
        ConfigError: The config is wrong, or it has no part with the name that ``--package`` gives.
    """
    messages.refuse_hydras_own(args.overrides, sweep=False)
    overrides = quote_texts(args.overrides)
    with session(args.config_dir, schema()) as loader:
        if not args.cfg:
            hydra_private.show_info(args.info, args.config_name, overrides)
            return
        composed = loader.load_configuration(args.config_name, overrides, RunMode.RUN)
        complete_composed(composed, loader)
        _fit_shown_warmup(composed)
        HydraConfig.instance().set_config(composed)  # for ${hydra:…}
        _print_part(_shown(composed, args.cfg), args.package, args.resolve)


def _fit_shown_warmup(composed: DictConfig) -> None:
    """Show the warm-up as the run will have it, if the config is complete and the number of steps is known."""
    try:
        config = to_run_config(composed)
        if config.train.max_steps is None:
            return
        fit_warmup(config.optim, config.train.max_steps)
    except (FtdistError, OmegaConfBaseException):  # what is wrong is reported when the config is run
        return
    for key in ("warmup_steps", "warmup_ratio", "shorten_warmup"):
        OmegaConf.update(composed, f"optim.{key}", getattr(config.optim, key))


def _shown(composed: DictConfig, kind: str) -> DictConfig:
    """Return the part of the config that ``--cfg`` names, without the texts of Hydra's own help."""
    OmegaConf.set_readonly(composed.hydra, None)  # HydraConfig has set it
    with flag_override(composed, "struct", False), flag_override(composed.hydra, "struct", False):
        if kind == "hydra":
            for key in [key for key in composed if key != "hydra"]:
                del composed[key]
            for key in ("hydra_help", "help"):
                del composed.hydra[key]
        if kind == "job":
            del composed["hydra"]
    return composed


def _print_part(config: DictConfig, package: Optional[str], resolve: bool) -> None:
    found: Any = config if package in (None, "_global_") else OmegaConf.select(config, package, default=NOTHING)
    if found is NOTHING:
        near = keys.nearest_key(str(package))
        raise ConfigError(f"--package {package}: the config has no such key", "a key or a section of the config",
                          " or ".join(f"-p {key}" for key in near))  # fmt: skip
    if not OmegaConf.is_config(found):
        print("null" if found is None else found.name if isinstance(found, Enum) else found)
        return
    if found is not config:
        print(f"# @package {package}")
    if resolve:
        OmegaConf.resolve(found)  # to_yaml(resolve=True) would raise an error for missing values (???)
    print(OmegaConf.to_yaml(found), end="")


def complete(overrides: List[str], word: str, config_dir: Optional[str] = None) -> List[str]:
    """Return what Hydra offers for the last word of a command line: groups, their options, and keys of the config."""
    try:
        with session(config_dir, schema()) as loader:
            found = hydra_private.offers(loader, PRIMARY, " ".join([*overrides, word]))
    except FtdistError:  # an earlier word is wrong or incomplete
        return []
    return [offer for offer in found if not offer.lstrip("+~").startswith("hydra")]
