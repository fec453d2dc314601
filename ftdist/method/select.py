"""Find the parameters that a method trains, by the names in the config, and freeze all others."""

import re
from fnmatch import fnmatchcase
from typing import Dict, Iterable, List, Set

import torch
from transformers import PreTrainedModel

from ftdist.base.counts import count
from ftdist.base.errors import ConfigError
from ftdist.base.names import nearest
from ftdist.config.method import MethodConfig
from ftdist.config.schema import RunConfig

LAYER = re.compile(r"(?:^|.*?\.)(\d+)(?:\.|$)")
"""The number of a layer is the first number in a name. Later ones may number the experts of the layer."""

GROUPS = ("embeddings", "head", "norms")
"""Groups of parameters that ``method.trainable`` can name."""


def named(name: str, pattern: str) -> bool:
    """Return whether a pattern matches the name of a module or parameter, or its end: ``q_proj``, ``layers.0.*``."""
    return fnmatchcase(f".{name}", f"*.{pattern}")


def layer_of(name: str) -> int:
    """Return the number of the layer that a module or parameter is in, or -1 if it is in none."""
    found = LAYER.match(name)
    return int(found.group(1)) if found else -1


def nothing_named(setting: str, pattern: str, ends: Iterable[str], what: str) -> ConfigError:
    """Return the error for a pattern that matches nothing.

    Args:
        setting: The setting with the pattern.
        ends: Names that the pattern could have matched, without the parts before them.
        what: The kind of these names, for the message.
    """
    known = sorted(set(ends))
    near = nearest(pattern, known) or known[:8]
    return ConfigError(f"{setting}: '{pattern}' matches no {what} of the model", f"names such as {', '.join(near)}",
                       f"{setting}=[{near[0] if near else ''}]")  # fmt: skip


def ends_of(names: Iterable[str]) -> List[str]:
    """Return the last parts of names."""
    return [name.rpartition(".")[2] for name in names]


def modules_to_save(model: PreTrainedModel, method: MethodConfig) -> Dict[str, torch.nn.Module]:
    """Return the modules that ``method.modules_to_save`` names, by name, and the modules that are tied to them.

    A module inside another one is a part of it: PEFT cannot read an adapter that names both.

    Raises:
        ConfigError: A name matches no module with parameters.
    """
    modules = {name: module for name, module in model.named_modules() if name and _has_parameters(module)}
    found: Dict[str, torch.nn.Module] = {}
    for pattern in method.modules_to_save:
        here = {name: module for name, module in modules.items() if named(name, pattern)}
        if not here:
            raise nothing_named("method.modules_to_save", pattern, ends_of(modules), "module")
        found |= here
    saved = {id(parameter) for module in found.values() for parameter in module.parameters()}
    tied = (model.get_input_embeddings(), model.get_output_embeddings())
    found |= {
        name: module for name, module in modules.items()
        if any(module is one for one in tied) and any(id(p) in saved for p in module.parameters())
    }  # fmt: skip
    return {name: module for name, module in found.items() if not any(name.startswith(f"{own}.") for own in found)}


def _has_parameters(module: torch.nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def partial_parameters(model: PreTrainedModel, method: MethodConfig) -> Set[int]:
    """Return the ids of the parameters that ``method.trainable`` and ``method.last_layers`` name.

    Raises:
        ConfigError: A pattern matches no parameter that can be trained, or the model has fewer layers.
    """
    parameters, chosen = dict(model.named_parameters()), set()
    for pattern in method.trainable:
        group = _group(model, pattern)
        here = [p for name, p in parameters.items() if named(name, pattern)] if group is None else group
        if not here:
            whole = [f"{pattern}.*"] if any(named(name, f"{pattern}.*") for name in parameters) else []
            owners = ends_of(name.rpartition(".")[0] for name in parameters)
            known = whole or [*GROUPS, *(f"{owner}.*" for owner in owners)]
            raise nothing_named("method.trainable", pattern, known, "parameter")
        if not any(parameter.requires_grad for parameter in here):
            raise ConfigError(f"method.trainable: '{pattern}' names only parameters that are never trained, such as "
                              "those for images", "parameters that can be trained",
                              f"leave '{pattern}' out of method.trainable")  # fmt: skip
        chosen |= {id(parameter) for parameter in here}
    if method.last_layers:
        layers = {layer_of(name) for name, p in parameters.items() if p.requires_grad} - {-1}
        if method.last_layers > len(layers):
            raise ConfigError(f"method.last_layers={method.last_layers}, but the model has "
                              + count(len(layers), "layer"),
                              f"at most {len(layers)}", f"method.last_layers={min(2, len(layers))}")  # fmt: skip
        last = sorted(layers)[-method.last_layers :]
        chosen |= {id(p) for name, p in parameters.items() if layer_of(name) in last}
    return chosen


def _group(model: PreTrainedModel, word: str) -> List[torch.nn.Parameter] | None:
    """Return the parameters of a group: ``embeddings``, ``head`` or ``norms``. None if the word names no group."""
    if word == "norms":
        norms = [module for module in model.modules() if "norm" in type(module).__name__.lower()]
        return [parameter for module in norms for parameter in module.parameters(recurse=False)]
    if word in ("embeddings", "head"):
        owner = model.get_input_embeddings() if word == "embeddings" else model.get_output_embeddings()
        return list(owner.parameters()) if owner is not None else []
    return None


def train_only(model: torch.nn.Module, chosen: Set[int]) -> None:
    """Freeze every parameter whose id is not in ``chosen``. A parameter that its model class never trains stays
    frozen."""
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.requires_grad and id(parameter) in chosen)


def refuse_untrained_tokens(model: PreTrainedModel, config: RunConfig, fix: str) -> None:
    """Check that the embeddings of new tokens are trained.

    Args:
        fix: The setting that trains them.

    Raises:
        ConfigError: The tokenizer has new special tokens, and the embedding or the output head is frozen.
    """
    owners = (model.get_input_embeddings(), model.get_output_embeddings())
    frozen = any(not owner.weight.requires_grad for owner in owners if owner is not None)
    if config.model.new_special_tokens and frozen:
        raise ConfigError(
            f"model.new_special_tokens adds tokens, but method={config.method.kind.name} trains neither their "
            "embeddings nor their output weights", "trained embeddings for new tokens",
            f"{fix}, or leave out model.new_special_tokens",
        )  # fmt: skip
