"""Command line → Hydra → RunConfig. The only place where Hydra is used, and a config is composed only once."""

import argparse
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple

import yaml
from hydra import version
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.plugins.completion_plugin import DefaultCompletionPlugin
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ftdist.config import DataConfig, RunConfig, check_config
from ftdist.errors import ConfigError, FtdistError

from . import explain, site

PRIMARY = "run"
NOTHING = object()


@dataclass
class _OpenData(DataConfig):
    # Hydra cannot add an item of a dataclass type; the sources' types are checked when the RunConfig is made.
    sources: Dict[str, Any] = field(default_factory=dict)
    heldout: Dict[str, Any] = field(default_factory=dict)


@dataclass
class _Schema(RunConfig):
    data: _OpenData = field(default_factory=_OpenData)


def _schema(config: Optional[RunConfig] = None) -> DictConfig:
    node = OmegaConf.structured(_Schema)
    if config is None:
        try:
            node = OmegaConf.merge(node, site.site_defaults())
        except OmegaConfBaseException as error:
            where = f"{site.site_file()}: {str(error).splitlines()[0]}"
            raise ConfigError(where, "keys and values of the run config") from error
    else:
        node = OmegaConf.merge(node, OmegaConf.to_container(OmegaConf.structured(config)))
    for free in explain.FREE_MAPPINGS:  # their keys are the user's, so `data.sources.mine.path=…` needs no `+`
        OmegaConf.set_struct(OmegaConf.select(node, free), False)
    return node


def add_arguments(parser: argparse.ArgumentParser, sweep: bool = False) -> None:
    """Hydra's own flags, for a verb that starts from a config."""
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="group=option, key=value, +key=value, ~key")
    parser.add_argument("--config-dir", "-cd", metavar="DIR", help="a folder of your own options, found first")
    parser.add_argument("--config-name", "-cn", metavar="NAME", default=PRIMARY, help="another primary config")
    parser.add_argument("--cfg", "-c", choices=["job", "hydra", "all"], help="print the config, do nothing")
    parser.add_argument("--resolve", action="store_true", help="with --cfg: resolve interpolations")
    parser.add_argument("--package", "-p", metavar="KEY", help="with --cfg: only this part")
    parser.add_argument("--info", "-i", nargs="?", const="all", metavar="WHAT",
                        choices=["all", "config", "defaults", "defaults-tree", "plugins", "searchpath"],
                        help="print what Hydra knows, do nothing")  # fmt: skip
    if sweep:
        parser.add_argument("--multirun", "-m", action="store_true", help="one run for each combination: key=1,2")


@contextmanager
def _hydra(config_dir: Optional[str], schema: Optional[DictConfig] = None) -> Iterator[Hydra]:
    version.setbase("1.3")
    ConfigStore.instance().store(name="run_schema", node=_schema() if schema is None else schema)
    search_path = create_config_search_path("pkg://ftdist.conf")
    if config_dir is not None:
        if not Path(config_dir).is_dir():
            raise ConfigError(f"--config-dir {config_dir} is not a folder", "a folder that holds groups of options")
        path = f"file://{Path(config_dir).resolve()}"
        search_path.prepend(provider="command-line", path=path, anchor=SearchPathQuery(provider="main"))
    GlobalHydra.instance().clear()
    hydra = Hydra.create_main_hydra2(task_name="ftdist", config_search_path=search_path)
    try:
        yield hydra
    except (HydraException, OmegaConfBaseException, ValueError) as error:  # Hydra raises ValueError for `group=3`
        raise explain.config_error(error, hydra.config_loader) from error
    except yaml.YAMLError as error:
        raise ConfigError(str(error), "YAML") from error
    finally:
        GlobalHydra.instance().clear()


def to_run_config(composed: DictConfig) -> RunConfig:
    """The typed config of what Hydra composed, checked."""
    plain = {key: value for key, value in composed.items_ex(resolve=False) if key != "hydra"}
    tree = OmegaConf.create(plain)
    OmegaConf.resolve(tree)
    missing = sorted(OmegaConf.missing_keys(tree))
    if missing:
        raise ConfigError(f"{missing[0]} is not set", "a value", f"{missing[0]}=…")
    untyped = OmegaConf.to_container(tree, enum_to_str=True)  # so that a key added with `+` is checked again
    assert isinstance(untyped, dict)
    explain.check_source_keys(untyped["data"])
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(RunConfig), untyped))
    assert isinstance(config, RunConfig)
    check_config(config)
    return config


def compose(args: argparse.Namespace) -> RunConfig:
    """One config from the command line.

    Raises:
        ConfigError: says which key or option is wrong and names the nearest right one.
    """
    explain.refuse_hydras_own(args.overrides, sweep=False)
    with _hydra(args.config_dir) as hydra:
        return to_run_config(hydra.compose_config(args.config_name, list(args.overrides), RunMode.RUN))


def compose_sweep(args: argparse.Namespace) -> List[Tuple[List[str], RunConfig]]:
    """Every job of a sweep (its overrides and its config), composed and checked before the first is started."""
    explain.refuse_hydras_own(args.overrides, sweep=True)
    jobs: List[Tuple[List[str], RunConfig]] = []
    wrong: List[Exception] = []

    def collect(composed: DictConfig) -> None:
        overrides = list(HydraConfig.get().overrides.task)
        try:
            jobs.append((overrides, to_run_config(composed)))
        except Exception as error:  # raised below: Hydra would print a report of its own
            wrong.append(error)

    with _hydra(args.config_dir) as hydra, tempfile.TemporaryDirectory() as scratch:
        quiet = [
            "hydra/hydra_logging=disabled", "hydra/job_logging=disabled", "hydra.output_subdir=null",
            "hydra.mode=MULTIRUN", f"hydra.sweep.dir='{scratch}'",
        ]  # fmt: skip
        hydra.multirun(args.config_name, collect, [*args.overrides, *quiet], with_log_configuration=False)
        if wrong:
            raise wrong[0]
    if not jobs:
        raise ConfigError("the sweep is empty", "Hydra's basic launcher: ftdist starts the runs itself")
    return jobs


def change(config: RunConfig, overrides: List[str]) -> RunConfig:
    """A frozen config with ``key=value`` overrides on top."""
    with _hydra(None, _schema(config)) as hydra:
        return to_run_config(hydra.compose_config("run_schema", overrides, RunMode.RUN))


def show(args: argparse.Namespace) -> None:
    """What ``--cfg`` and ``--info`` ask for, on standard output.

    Raises:
        ConfigError: the config is wrong, or has no part of the name that ``--package`` gives.
    """
    overrides = list(args.overrides)
    explain.refuse_hydras_own(overrides, sweep=False)
    with _hydra(args.config_dir) as hydra:
        if not args.cfg:
            hydra.show_info(args.info, config_name=args.config_name, overrides=overrides)
        elif _part_is_shown(hydra, args, overrides):
            hydra.show_cfg(args.config_name, overrides, args.cfg, args.package, args.resolve)


def _part_is_shown(hydra: Hydra, args: argparse.Namespace, overrides: List[str]) -> bool:
    """Whether Hydra can show the part that is asked for: it calls one that is null, or none at all, not found."""
    if args.package in (None, "_global_"):
        return True
    composed = hydra.compose_config(args.config_name, overrides, RunMode.RUN)
    found = OmegaConf.select(composed, args.package, default=NOTHING)
    if found is NOTHING:
        near = explain.nearest_key(args.package)
        raise ConfigError(f"--package {args.package}: the config has no such part", "a key, or a group of keys",
                          " or ".join(f"-p {key}" for key in near))  # fmt: skip
    if found is None:
        print("null")
    return found is not None


def complete(overrides: List[str], word: str, config_dir: Optional[str] = None) -> List[str]:
    """What Hydra offers for the last word of a command line: groups, their options, and keys of what is composed."""
    try:
        with _hydra(config_dir) as hydra:
            plugin = DefaultCompletionPlugin(hydra.config_loader)
            found = plugin._query(config_name=PRIMARY, line=" ".join([*overrides, word]))
    except FtdistError:  # a word before it is wrong, or only half there
        return []
    return [offer for offer in found if not offer.startswith("hydra")]
