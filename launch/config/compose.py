"""Command line → Hydra → RunConfig. The only place where Hydra is used, and a config is composed only once."""

import argparse
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple, cast

import yaml
from hydra import version
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.plugins.completion_plugin import DefaultCompletionPlugin
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ftdist.base.errors import ConfigError, FtdistError
from ftdist.config.checks import check_config
from ftdist.config.schema import DataConfig, RunConfig
from ftdist.launch.config import messages, site

PRIMARY = "run"
OPTUNA = "hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper"
SAMPLERS = ("TPESampler", "RandomSampler", "GridSampler", "CmaEsSampler", "NSGAIISampler", "MOTPESampler")
OWN_PLUGINS = {
    "hydra.launcher._target_": ("hydra._internal.core_plugins.basic_launcher.BasicLauncher",),
    "hydra.sweeper._target_": ("hydra._internal.core_plugins.basic_sweeper.BasicSweeper", OPTUNA),
    "hydra.sweeper.sampler._target_": tuple(f"optuna.samplers.{name}" for name in SAMPLERS),
}
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
        site.refuse_misread(cast(Dict[str, Any], OmegaConf.to_container(node)))
    else:
        node = OmegaConf.merge(node, OmegaConf.to_container(OmegaConf.structured(config)))
    for free in messages.FREE_MAPPINGS:  # their keys are the user's, so `data.sources.mine.path=…` needs no `+`
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
    _register_launcher()
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
        raise messages.config_error(error, hydra.config_loader) from error
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
        value = "FILE" if missing[0].endswith(".path") else "VALUE"
        raise ConfigError(f"{missing[0]} is not set", "a value", f"add {missing[0]}={value}")
    untyped = OmegaConf.to_container(tree, enum_to_str=True)  # so that a key added with `+` is checked again
    assert isinstance(untyped, dict)
    messages.check_source_keys(untyped["data"])
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(RunConfig), untyped))
    assert isinstance(config, RunConfig)
    check_config(config)
    return config


def compose(args: argparse.Namespace) -> RunConfig:
    """One config from the command line.

    Raises:
        ConfigError: says which key or option is wrong and names the nearest right one.
    """
    messages.refuse_hydras_own(args.overrides, sweep=False)
    with _hydra(args.config_dir) as hydra:
        return to_run_config(hydra.compose_config(args.config_name, list(args.overrides), RunMode.RUN))


def _refuse_plugins(composed: DictConfig) -> None:
    """Hydra makes objects of what ``hydra.*`` names, and a config may come from anybody: of sweepers, and of code, only
    Hydra's own and Optuna's.

    Raises:
        ConfigError: names the key.
    """
    hydra = OmegaConf.to_container(composed.hydra, resolve=False)
    for key, name in sorted(_targets("hydra", hydra)):
        if name not in OWN_PLUGINS.get(key, ()):
            raise ConfigError(f"{key}={name} names code to run", "Hydra's own sweeper or Optuna's, and no callbacks",
                              "leave it out: ftdist starts the runs of a sweep itself")  # fmt: skip
    if OmegaConf.select(composed, "hydra.sweeper.custom_search_space") is not None:
        raise ConfigError("hydra.sweeper.custom_search_space names code to run", "a search space in words",
                          "the ranges on the command line: optim.lr=interval(1e-5,1e-3)")  # fmt: skip


def _targets(where: str, node: Any) -> Iterator[Tuple[str, str]]:
    if isinstance(node, (dict, list)):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            if key == "_target_":
                yield f"{where}._target_", str(value)
            yield from _targets(f"{where}.{key}", value)


@dataclass(frozen=True)
class SweepRequest:
    """A sweep as it was asked for: enough to go through it again."""

    overrides: List[str]
    config_dir: Optional[str]
    config_name: str


ComposeTrial = Callable[[], RunConfig]
RunTrials = Callable[[List[Tuple[List[str], ComposeTrial]], int], List[float]]
"""Runs a batch of trials, numbered on from the second argument. Each is its overrides and what composes its config.
Returns their objectives, which the sweeper makes smaller."""


@dataclass(frozen=True)
class SweepPlan:
    """What is known of a sweep before any trial is proposed."""

    name: str
    runs_dir: str
    learns: bool
    """Whether its sweeper goes by the objectives of trials."""


def peek_sweep(request: SweepRequest) -> SweepPlan:
    with _hydra(request.config_dir) as hydra:
        messages.refuse_hydras_own(request.overrides, sweep=True)
        composed = hydra.compose_config(request.config_name, request.overrides, RunMode.MULTIRUN)
        _refuse_plugins(composed)
        learns = not str(composed.hydra.sweeper._target_).endswith(".BasicSweeper")
        return SweepPlan(composed.name, composed.runs_dir, learns)


def sweep(request: SweepRequest, run_trials: RunTrials) -> None:
    """Let Hydra's sweeper propose trials, a batch at a time, until it has no more.

    A sweeper that goes by objectives gets a seed where it has none: proposing the same trials again is how a sweep that
    was cut goes on.
    """
    with _hydra(request.config_dir) as hydra, tempfile.TemporaryDirectory() as scratch:
        ours = [
            "hydra/hydra_logging=disabled", "hydra/job_logging=disabled", "hydra.output_subdir=null",
            "hydra.mode=MULTIRUN", f"hydra.sweep.dir='{scratch}'", "hydra/launcher=ftdist",
        ]  # fmt: skip
        composed = hydra.compose_config(request.config_name, request.overrides, RunMode.MULTIRUN)
        if OmegaConf.select(composed, "hydra.sweeper.sampler.seed", default=0) is None:
            ours.append(f"hydra.sweeper.sampler.seed={composed.seed}")
        hydra.multirun(request.config_name, run_trials, [*request.overrides, *ours], with_log_configuration=False)


class TrialLauncher(Launcher):
    """What Hydra's sweepers call a launcher: it gets the overrides of trials and returns their objectives."""

    def setup(self, *, hydra_context: HydraContext, task_function: Any, config: DictConfig) -> None:
        self._loader, self._run_trials, self._config = hydra_context.config_loader, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        trials = [(list(overrides), partial(self._compose, list(overrides))) for overrides in job_overrides]
        objectives = self._run_trials(trials, initial_job_idx)
        return [JobReturn(status=JobStatus.COMPLETED, _return_value=objective) for objective in objectives]

    def _compose(self, overrides: List[str]) -> RunConfig:
        composed = self._loader.load_sweep_config(self._config, overrides)
        HydraConfig.instance().set_config(composed)
        return to_run_config(composed)


def _register_launcher() -> None:
    # Hydra imports its plugins by name, and from the package hydra_plugins only.
    TrialLauncher.__module__ = "hydra_plugins.ftdist"
    sys.modules[TrialLauncher.__module__] = sys.modules[__name__]
    Plugins.instance().register(TrialLauncher)
    node = {"_target_": f"{TrialLauncher.__module__}.{TrialLauncher.__name__}"}
    ConfigStore.instance().store(group="hydra/launcher", name="ftdist", node=node, provider="ftdist")


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
    messages.refuse_hydras_own(overrides, sweep=False)
    with _hydra(args.config_dir) as hydra:
        if not args.cfg:
            hydra.show_info(args.info, config_name=args.config_name, overrides=overrides)
        elif _part_is_shown(hydra, args, overrides):
            hydra.show_cfg(args.config_name, overrides, args.cfg, args.package, args.resolve)


def _part_is_shown(hydra: Hydra, args: argparse.Namespace, overrides: List[str]) -> bool:
    """Whether Hydra can show the part that is asked for: it calls one that is null, or none at all, not found, and one
    of several words by the name of its class."""
    if args.package in (None, "_global_"):
        return True
    composed = hydra.compose_config(args.config_name, overrides, RunMode.RUN)
    found = OmegaConf.select(composed, args.package, default=NOTHING)
    if found is NOTHING:
        near = messages.nearest_key(args.package)
        raise ConfigError(f"--package {args.package}: the config has no such part", "a key, or a group of keys",
                          " or ".join(f"-p {key}" for key in near))  # fmt: skip
    if found is None:
        print("null")
    if isinstance(found, Enum):  # as it is typed, and as it stands in the whole config
        print(found.name)
    return not (found is None or isinstance(found, Enum))


def complete(overrides: List[str], word: str, config_dir: Optional[str] = None) -> List[str]:
    """What Hydra offers for the last word of a command line: groups, their options, and keys of what is composed."""
    try:
        with _hydra(config_dir) as hydra:
            plugin = DefaultCompletionPlugin(hydra.config_loader)
            found = plugin._query(config_name=PRIMARY, line=" ".join([*overrides, word]))
    except FtdistError:  # a word before it is wrong, or only half there
        return []
    return [offer for offer in found if not offer.lstrip("+~").startswith("hydra")]
