"""The private parts of Hydra that ftdist uses. tests/unit/launch/config/test_hydra_private.py checks that a new version
of Hydra still behaves as this module assumes.
"""

from contextlib import contextmanager
from typing import Any, Iterator, List, Optional

from hydra._internal import config_loader_impl
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.plugins.completion_plugin import DefaultCompletionPlugin
from hydra.types import RunMode
from omegaconf import DictConfig


def show_info(what: str, config_name: Optional[str], overrides: List[str]) -> None:
    """Print what Hydra knows: ``--info``.

    The method belongs to the class ``hydra._internal.hydra.Hydra``, which is reached through GlobalHydra. Hydra offers
    no function for it: the public way is the flag ``--info`` of a program that is built with ``@hydra.main``.
    """
    hydra = GlobalHydra.instance().hydra
    assert hydra is not None
    hydra.show_info(what, config_name=config_name, overrides=overrides)


def offers(loader: ConfigLoader, config_name: str, line: str) -> List[str]:
    """Return the completions of the last word of a line of overrides: groups, their options, keys, current values.

    Hydra's plugins for shells call ``_query``. The public method ``query`` is written by each plugin, and prints.
    """
    found: List[str] = DefaultCompletionPlugin(loader)._query(config_name=config_name, line=line)
    return found


_last: Any = None
"""The command line of the config that Hydra has composed last in the open session, and its defaults list."""


@contextmanager
def remembered_defaults() -> Iterator[None]:
    """Remember the defaults list that Hydra computes to compose a config inside the ``with`` block.

    Hydra does not return it, and to compute it again takes 30 % of the time of composing.
    """
    global _last
    compute = config_loader_impl.create_defaults_list

    def remember(repo: Any, config_name: Any, overrides_list: Any, **how: Any) -> Any:
        global _last
        found = compute(repo=repo, config_name=config_name, overrides_list=overrides_list, **how)
        # A composed config lists Hydra's own overrides apart from the others.
        words = sorted(overrides_list, key=lambda override: not override.is_hydra_override())
        _last = (config_name, [override.input_line for override in words], how["skip_missing"]), found
        return found

    config_loader_impl.create_defaults_list = remember
    try:
        yield
    finally:
        config_loader_impl.create_defaults_list, _last = compute, None


def defaults_list(composed: DictConfig, loader: ConfigLoader) -> Any:
    """Return the defaults list of a composed config: the files in the order of merging, and the overrides.

    Args:
        composed: What Hydra composed, with its own node ``hydra``.
        loader: The loader that composed it.
    """
    own = composed.hydra
    words = [*own.overrides.hydra, *own.overrides.task]
    if _last is not None and _last[0] == (own.job.config_name, words, False):
        return _last[1]
    return loader.compute_defaults_list(own.job.config_name, words, RunMode.RUN)
