"""Sweeps: Hydra's sweepers propose trials, and a function of the caller runs them."""

import sys
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Callable, Iterator, List, Optional, Sequence, Tuple, cast

from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf

from ftdist.base.errors import ConfigError
from ftdist.config.schema import RunConfig
from ftdist.launch.config import messages
from ftdist.launch.config.compose import complete_composed, schema, to_run_config
from ftdist.launch.config.origins import find_origins
from ftdist.launch.config.session import HYDRA_ERRORS, session
from ftdist.launch.config.texts import quote_texts, restore_texts

OPTUNA = "hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper"
SAMPLERS = ("TPESampler", "RandomSampler", "GridSampler", "CmaEsSampler", "NSGAIISampler", "MOTPESampler")


@dataclass(frozen=True)
class SweepRequest:
    """The user's request for a sweep. It is enough to propose the same trials again."""

    overrides: List[str]
    config_dir: Optional[str]
    config_name: str


ComposeTrial = Callable[[], RunConfig]
RunTrials = Callable[[List[Tuple[List[str], ComposeTrial]], int], List[float]]
"""Runs a batch of trials. The arguments are the trials, each as its overrides and a function that composes its config,
and the number of the first one. Returns the objectives of the trials, which the sweeper minimizes."""


@dataclass(frozen=True)
class SweepPlan:
    """What is known about a sweep before any trial is proposed."""

    name: str
    runs_dir: str
    learns: bool
    """Whether the sweeper uses the objectives of trials to propose the next ones."""
    rungs: List[int]
    """``sweep.rungs``."""


def peek_sweep(request: SweepRequest) -> SweepPlan:
    """Return what is known about a sweep before it starts.

    Raises:
        ConfigError: The config is wrong, or it asks for code that ftdist does not run.
    """
    messages.refuse_hydras_own(request.overrides, sweep=True)
    with session(request.config_dir, schema()) as loader:
        composed = loader.load_configuration(request.config_name, quote_texts(request.overrides), RunMode.MULTIRUN)
        restore_texts(composed, find_origins(composed, loader))
        _refuse_foreign_code(composed)
        learns = composed.hydra.sweeper._target_ != _target("hydra/sweeper", "basic")
        _refuse_other_direction(composed)
        return SweepPlan(composed.name, composed.runs_dir, learns, list(composed.sweep.rungs))


def sweep(request: SweepRequest, run_trials: RunTrials) -> None:
    """Let Hydra's sweeper propose trials, one batch at a time, until it has no more.

    A sweeper that learns gets a seed if it has none. Proposing the same trials again is how a sweep is resumed.

    Raises:
        ConfigError: A trial has a wrong config. The message names the trial.
    """
    overrides = quote_texts(request.overrides)
    with session(request.config_dir, schema()) as loader, tempfile.TemporaryDirectory() as scratch:
        _register_launcher()
        ours = [
            "hydra/hydra_logging=disabled", "hydra/job_logging=disabled", "hydra.output_subdir=null",
            "hydra.mode=MULTIRUN", f"hydra.sweep.dir='{scratch}'", "hydra/launcher=ftdist",
        ]  # fmt: skip
        composed = loader.load_configuration(request.config_name, [*overrides, *ours], RunMode.MULTIRUN)
        if OmegaConf.select(composed, "hydra.sweeper.sampler.seed", default=0) is None:
            ours.append(f"hydra.sweeper.sampler.seed={composed.seed}")
            composed = loader.load_configuration(request.config_name, [*overrides, *ours], RunMode.MULTIRUN)
        _quote_params(composed)
        naming = cast(ConfigLoader, _TrialLoader(loader, overrides))
        context = HydraContext(naming, callbacks=cast(Any, None))  # peek_sweep has refused callbacks
        plugins = Plugins.instance()
        sweeper = plugins.instantiate_sweeper(config=composed, hydra_context=context, task_function=run_trials)
        sweeper.sweep(arguments=list(composed.hydra.overrides.task))


def _quote_params(composed: DictConfig) -> None:
    """Quote text in a search space from a config file, as for a search space on the command line."""
    params = OmegaConf.select(composed, "hydra.sweeper.params") or {}
    for key, space in params.items():
        params[key] = quote_texts([f"{key}={space}"])[0].partition("=")[2]


class _TrialLoader:
    """A config loader that names the trial in its errors. Hydra's sweepers and launcher compose trials with it."""

    def __init__(self, loader: ConfigLoader, requested: List[str]) -> None:
        self._loader = loader
        parsed = OverridesParser.create().parse_overrides(requested)
        self._fixed = {override.get_key_element() for override in parsed if not override.is_sweep_override()}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: List[str]) -> DictConfig:
        with self._named(sweep_overrides):
            return self._loader.load_sweep_config(master_config, quote_texts(sweep_overrides))

    def trial_config(self, master_config: DictConfig, overrides: List[str]) -> RunConfig:
        """Return the config of a trial, checked."""
        composed = self.load_sweep_config(master_config, overrides)
        with self._named(overrides):
            complete_composed(composed, self._loader)
            HydraConfig.instance().set_config(composed)
            return to_run_config(composed)

    @contextmanager
    def _named(self, overrides: Sequence[str]) -> Iterator[None]:
        """Put the overrides that make this trial into the errors of the ``with`` block."""
        try:
            yield
        except HYDRA_ERRORS as error:
            raise self._error(messages.config_error(error, self._loader), overrides) from error
        except ConfigError as error:
            raise self._error(error, overrides) from error

    def _error(self, error: ConfigError, overrides: Sequence[str]) -> ConfigError:
        own = " ".join(word for word in overrides if word.partition("=")[0] not in self._fixed)
        return ConfigError(f"trial {own}: {error.found}", error.expected, error.fix)


class TrialLauncher(Launcher):
    """The launcher plugin of Hydra's sweepers: it gets the overrides of trials and returns their objectives."""

    def setup(self, *, hydra_context: HydraContext, task_function: Any, config: DictConfig) -> None:
        self._loader, self._run_trials, self._config = hydra_context.config_loader, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        assert isinstance(self._loader, _TrialLoader)
        trials = [
            (list(overrides), partial(self._loader.trial_config, self._config, list(overrides)))
            for overrides in job_overrides
        ]
        objectives = self._run_trials(trials, initial_job_idx)
        return [JobReturn(status=JobStatus.COMPLETED, _return_value=objective) for objective in objectives]


def _register_launcher() -> None:
    # Hydra imports plugins by name, and only from the package hydra_plugins.
    TrialLauncher.__module__ = "hydra_plugins.ftdist"
    sys.modules[TrialLauncher.__module__] = sys.modules[__name__]
    Plugins.instance().register(TrialLauncher)
    node = {"_target_": f"{TrialLauncher.__module__}.{TrialLauncher.__name__}"}
    ConfigStore.instance().store(group="hydra/launcher", name="ftdist", node=node, provider="ftdist")


def _refuse_foreign_code(composed: DictConfig) -> None:
    """Refuse a config that names code for Hydra to run: ``hydra.*`` makes objects by name, and a config may come from
    anybody. Only Hydra's own sweeper and launcher, and Optuna's sweeper and samplers, are allowed.

    Raises:
        ConfigError: The config names other code. The message names the key.
    """
    allowed = {
        "hydra.launcher._target_": (_target("hydra/launcher", "basic"),),
        "hydra.sweeper._target_": (_target("hydra/sweeper", "basic"), OPTUNA),
        "hydra.sweeper.sampler._target_": tuple(f"optuna.samplers.{name}" for name in SAMPLERS),
    }
    for key, name in sorted(_targets("hydra", OmegaConf.to_container(composed.hydra, resolve=False))):
        if name not in allowed.get(key, ()):
            raise ConfigError(f"{key}={name} names code that Hydra would import and run",
                              "Hydra's basic sweeper or the Optuna sweeper, without callbacks",
                              f"leave out {key}; ftdist starts the runs of a sweep itself")  # fmt: skip
    if OmegaConf.select(composed, "hydra.sweeper.custom_search_space") is not None:
        raise ConfigError("hydra.sweeper.custom_search_space names code that Hydra would import and run",
                          "a search space written as overrides",
                          "write the ranges on the command line: optim.lr=interval(1e-5,1e-3)")  # fmt: skip


def _refuse_other_direction(composed: DictConfig) -> None:
    """Refuse a sweeper that does not minimize the number that ftdist gives it.

    Raises:
        ConfigError: the sweeper maximizes, or it has several objectives.
    """
    direction = OmegaConf.select(composed, "hydra.sweeper.direction")
    if direction is not None and getattr(direction, "name", direction) != "minimize":
        raise ConfigError(f"hydra.sweeper.direction={getattr(direction, 'name', direction)}",
                          "minimize: ftdist gives the sweeper a number that is lower for better trials",
                          "leave out hydra.sweeper.direction, and set sweep.direction=maximize")  # fmt: skip


def _target(group: str, name: str) -> str:
    """Return the class path (``_target_``) in one of Hydra's own options."""
    return str(ConfigStore.instance().load(f"{group}/{name}.yaml").node["_target_"])


def _targets(where: str, node: Any) -> Iterator[Tuple[str, str]]:
    if isinstance(node, (dict, list)):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            if key == "_target_":
                yield f"{where}._target_", str(value)
            yield from _targets(f"{where}.{key}", value)
