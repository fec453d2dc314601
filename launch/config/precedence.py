"""Choose between two settings that exclude each other: the one that was set at the more specific level wins."""

from typing import Dict, Tuple

from omegaconf import DictConfig, OmegaConf

from ftdist.base.errors import ConfigError
from ftdist.base.names import as_typed
from ftdist.launch.config.origins import Origin

NOT_SET = Origin(-1, "", True, None)


def settle(composed: DictConfig, origins: Dict[str, Origin]) -> None:
    """Choose between ``train.max_steps`` and ``train.epochs``, and between ``optim.warmup_steps`` and
    ``warmup_ratio``, in place.

    The level of a value is its place in the order in which Hydra merges. From the most to the least specific, they are
    the command line, an experiment, a primary config, and the file of a group. The value that loses becomes null
    (``optim.warmup_steps``: 0). A warm-up may be shortened if it is a default, or if the length of the run is set at a
    more specific level.

    Raises:
        ConfigError: Both are set at the same level.
    """
    length = _choose(composed, origins, ("train.max_steps", None), ("train.epochs", None))
    warmup = _choose(composed, origins, ("optim.warmup_steps", 0), ("optim.warmup_ratio", None))
    if "optim.shorten_warmup" not in origins and warmup is not NOT_SET:
        _put(composed, "optim.shorten_warmup", warmup.is_default or length.order > warmup.order)


def _choose(
    composed: DictConfig, origins: Dict[str, Origin], first: Tuple[str, object], second: Tuple[str, object]
) -> Origin:
    """If both keys are set, reset the less specific one. Each argument is a key and the value that means "not set".

    Returns:
        The origin of the value that is left. NOT_SET if both keys hold their defaults.
    """
    set_keys = []
    for key, absent in (first, second):
        origin = origins.get(key, NOT_SET)
        value = OmegaConf.select(composed, key, throw_on_missing=False)
        if value is not None and (origin is not NOT_SET or value != absent):
            set_keys.append((origin, key, absent, value))
    if not set_keys:
        return NOT_SET
    if len(set_keys) == 1:
        return set_keys[0][0]
    (low, lost, absent, _), (high, *_) = sorted(set_keys, key=lambda item: item[0].order)
    if low.order == high.order:
        found = " and ".join(f"{key}={as_typed(value)}" for _, key, _, value in set_keys)
        raise ConfigError(f"{found} are both set {low.where}", "one of them", f"leave out {set_keys[1][1]}")
    _put(composed, lost, absent)
    return high


def _put(composed: DictConfig, key: str, value: object) -> None:
    OmegaConf.update(composed, key, value, force_add=True)
