"""The private parts of Hydra that ftdist uses. tests/unit/launch/config/test_hydra_private.py checks that a new version
of Hydra still behaves as this module assumes.
"""

from typing import List, Optional

from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.plugins.completion_plugin import DefaultCompletionPlugin


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
