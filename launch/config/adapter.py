"""Use the settings of the adapter that a run continues (``method.init_from``)."""

from typing import Any, Dict

from omegaconf import DictConfig, OmegaConf

from ftdist.base.errors import ConfigError
from ftdist.config.method import METHOD_FACTS
from ftdist.launch.config.origins import Origin
from ftdist.run.adapters import INIT_FROM, adapter_folder, adapter_settings


def take_adapter(composed: DictConfig, origins: Dict[str, Origin]) -> None:
    """Set the section ``method`` to the settings of the adapter that ``method.init_from`` names, in place.

    Raises:
        ConfigError: There is no such adapter, or a file or the command line sets one of its settings differently.
    """
    given = OmegaConf.select(composed, INIT_FROM, throw_on_missing=False)
    kind = OmegaConf.select(composed, "method.kind", throw_on_missing=False)
    adapters = {one.name for one, facts in METHOD_FACTS.items() if facts.adapters}
    if not given or str(getattr(kind, "name", kind)) not in adapters:
        return  # a method that does not read init_from is refused later
    for name, value in adapter_settings(INIT_FROM, adapter_folder(INIT_FROM, given)).items():
        key = f"method.{name}"
        mine = OmegaConf.select(composed, key)
        if key in origins and _plain(mine) != value:
            raise ConfigError(f"{key}={_shown(mine)} is set {origins[key].where}, but {INIT_FROM}={given} has "
                              f"{_shown(value)}", "the settings of the adapter, which the run uses",
                              f"leave out {key}")  # fmt: skip
        OmegaConf.update(composed, key, value)


def _plain(value: Any) -> Any:
    value = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    return sorted(value) if isinstance(value, list) else value


def _shown(value: Any) -> str:
    return f"[{','.join(map(str, value))}]" if OmegaConf.is_list(value) or isinstance(value, list) else str(value)
