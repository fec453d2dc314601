"""LoRA adapters in a model. PEFT builds their layers. This module chooses the modules that get an adapter, and
initializes the weights.

The layers are put into the model itself (``inject_adapter_in_model``). PEFT's own wrapper around the model is not used:
its ``forward`` accepts any arguments, which hides the arguments that the model takes.
"""

import hashlib
import math
import re
import warnings
from contextlib import contextmanager
from typing import Any, Collection, Dict, Iterator, List, Optional, Set

import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ftdist.base.errors import ConfigError
from ftdist.config.method import MethodConfig
from ftdist.config.schema import RunConfig
from ftdist.method.select import (
    ends_of,
    layer_of,
    modules_to_save,
    named,
    nothing_named,
    refuse_untrained_tokens,
)
from ftdist.model.adapter import new_names
from ftdist.model.parts import freeze_other_parts, layers_used_elsewhere
from ftdist.model.quantized import is_quantized
from ftdist.run.adapters import PREFIX

ADAPTER = "default"
"""PEFT's name of the adapter. It is part of the names of parameters in memory, but not of those in an exported file."""
ALL_LINEAR = "all-linear"
BASE_LAYER = ".base_layer."
"""Part of the names of the base model's parameters that have an adapter."""


def add_adapters(model: PreTrainedModel, config: RunConfig) -> None:
    """Freeze the model, and add adapters, which do not change its output at first because B is 0.

    The same numbers are drawn on any number of ranks and at any ZeRO stage. With ZeRO-3 the adapters are whole on every
    rank until DeepSpeed is initialized.

    Raises:
        ConfigError: A name in the config matches no module, PEFT has no adapter for a module, or new tokens would not
        be trained.
    """
    from peft import inject_adapter_in_model

    freeze_other_parts(model)
    trainable = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    try:
        inject_adapter_in_model(peft_config(model, config.method), model, ADAPTER)
    except ValueError as error:
        found = f"method={config.method.kind.name}: {str(error).splitlines()[0][:200]}"
        raise ConfigError(
            found, "modules that PEFT has adapters for", "other modules in method.target_modules"
        ) from error
    for module in modules_to_save(model, config.method).values():
        for parameter in module.parameters():
            parameter.requires_grad_(id(parameter) in trainable)
    _draw_adapters(model, config.seed)
    refuse_untrained_tokens(model, config, "method.modules_to_save=[embed_tokens,lm_head]")


def peft_config(model: PreTrainedModel, method: MethodConfig) -> Any:
    """Return PEFT's config of the adapters: the settings of ``method``, and the full names of the modules."""
    from peft import LoraConfig

    return LoraConfig(
        r=method.r, lora_alpha=method.lora_alpha, lora_dropout=method.lora_dropout,
        target_modules=target_modules(model, method), use_rslora=method.use_rslora, use_dora=method.use_dora,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()), task_type="CAUSAL_LM",
    )  # fmt: skip


def target_modules(model: PreTrainedModel, method: MethodConfig) -> List[str]:
    """Return the names of the modules that get an adapter.

    Embeddings get none, and the output head gets one only if it is named and not tied to the embedding, because an
    adapter of a tied weight could not be merged. Parts for images or sound get none either, because they are frozen,
    nor layers that do not compute with their weights themselves or whose names PEFT takes for experts.

    Raises:
        ConfigError: A pattern matches no linear layer, or none in ``method.layers_to_transform``, or there is no layer
        with a number.
    """
    head = model.get_output_embeddings()
    linear = [
        name for name, module in model.named_modules()
        if _is_linear(module) and module is not head and (module.weight.requires_grad or is_quantized(module.weight))
    ]  # fmt: skip
    saved = modules_to_save(model, method)
    linear = [name for name in linear if not any(name == own or name.startswith(f"{own}.") for own in saved)]
    used = layers_used_elsewhere(model)
    reasons = {name: reason for name, reason in used.items() if model.get_submodule(name) is not head}
    reasons |= dict.fromkeys(_renamed_by_peft(model, linear), "PEFT would not find it in a saved adapter")
    reasons |= dict.fromkeys(_taken_for_experts(model, linear), "PEFT takes the name for that of experts")
    linear = [name for name in linear if name not in reasons]
    tied = head is not None and head.weight is model.get_input_embeddings().weight
    own_head = [name for name, module in model.named_modules() if module is head and not tied and name not in saved]
    chosen: Dict[str, None] = {}
    for pattern in _by_new_names(model, method.target_modules):
        here = linear if pattern == ALL_LINEAR else [name for name in [*linear, *own_head] if named(name, pattern)]
        if not here:
            if why := next((reason for name, reason in reasons.items() if named(name, pattern)), ""):
                raise ConfigError(f"method.target_modules: '{pattern}' cannot have an adapter in a "
                                  f"{model.config.model_type} model: {why}", "other linear layers",
                                  f"leave '{pattern}' out of method.target_modules")  # fmt: skip
            raise _no_layer(model, pattern, linear, tied, saved)
        layers = _layers(linear, method)
        if layers is not None:
            here = [name for name in here if layer_of(name) in layers]
            if not here:
                raise ConfigError(f"method.layers_to_transform={method.layers_to_transform}: '{pattern}' of "
                                  "method.target_modules names no module in these layers",
                                  "for each name, a module in one of the layers",
                                  f"method.layers_to_transform=null, or leave '{pattern}' out of "
                                  "method.target_modules")  # fmt: skip
        chosen |= dict.fromkeys(here)
    return _shortest(model, list(chosen))


def _by_new_names(model: PreTrainedModel, patterns: List[str]) -> List[str]:
    """Return patterns for modules. The name that a module had in transformers 4 is replaced by its new name."""
    modules = [name for name, _ in model.named_modules()]
    unknown = [word for word in patterns if word != ALL_LINEAR and not any(named(name, word) for name in modules)]
    renamed = new_names(model, unknown)
    return [renamed.get(word, word) for word in patterns]


def _taken_for_experts(model: PreTrainedModel, names: List[str]) -> Set[str]:
    """Return the layers that PEFT cannot give an adapter, because experts had their names in transformers 4.

    PEFT takes ``gate_proj`` in DeepSeek-V3 for the experts, which are one tensor now. It would put adapters beside that
    tensor, and none beside the layers: the shared experts, and the first layers, which have none.
    """
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    taken = set()
    for end in {name.rpartition(".")[2] for name in names}:
        settings = LoraConfig(target_modules=[end])
        try:
            convert_peft_config_for_transformers(settings, model=model, conversions=None)
        except ValueError:  # PEFT joins this name with another one, and wants both
            taken.add(end)
        if end not in settings.target_modules:
            taken.add(end)
    return {name for name in names if name.rpartition(".")[2] in taken}


def _is_linear(module: torch.nn.Module) -> bool:
    """Return whether a module computes as a linear layer does. Some routers and grouped layers are derived from one."""
    own = isinstance(module, torch.nn.Linear) and type(module).forward is torch.nn.Linear.forward
    return own or isinstance(module, Conv1D) or is_quantized(getattr(module, "weight", None))


def _renamed_by_peft(model: PreTrainedModel, names: List[str]) -> Set[str]:
    keys = {name: f"{PREFIX}{name}.lora_A.weight" for name in names}
    read = as_peft_reads(model, {key: torch.empty(1) for key in keys.values()})
    return {name for name, key in keys.items() if key not in read}


def as_peft_reads(model: Any, tensors: Dict[str, torch.Tensor]) -> Dict[str, torch.Tensor]:
    """Return the tensors of an adapter's file by the names under which PEFT looks for their places in a model.

    It renames tensors as transformers renames those in the files of the model, and finds no place for some.
    """
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_adapter_state_dict_for_transformers

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return dict(convert_peft_adapter_state_dict_for_transformers(model, LoraConfig(), tensors, ADAPTER))


def _layers(linear: List[str], method: MethodConfig) -> Optional[Set[int]]:
    """Return the numbers of the layers with adapters, counted from the start. None: all, and modules outside of layers.

    Raises:
        ConfigError: There is no layer with a number.
    """
    if method.layers_to_transform is None:
        return None
    count = 1 + max(map(layer_of, linear), default=-1)
    for number in method.layers_to_transform:
        if not -count <= number < count:
            raise ConfigError(f"method.layers_to_transform: there is no layer {number}", f"0 to {count - 1}, or -1 to "
                              f"-{count} from the end", "method.layers_to_transform=[-1]")  # fmt: skip
    return {number % count for number in method.layers_to_transform}


def _no_layer(
    model: PreTrainedModel, pattern: str, linear: List[str], tied: bool, saved: Collection[str]
) -> ConfigError:
    """Return the error for a pattern of ``method.target_modules`` that names no layer which can have an adapter.

    Args:
        linear: The layers that can have one. tied: Whether the output head is the embedding. saved: The modules that
            are trained whole.
    """
    expected, fix = "modules that can have an adapter", "leave it out of method.target_modules"
    head = model.get_output_embeddings()
    if tied and any(module is head and named(name, pattern) for name, module in model.named_modules()):
        return ConfigError(f"method.target_modules: '{pattern}' is the output head, which shares its weight with the "
                           "embedding, so that its adapter could not be merged", expected,
                           f"{fix} and set method.modules_to_save=[lm_head] to train it")  # fmt: skip
    if not linear:
        return ConfigError("method.modules_to_save trains all linear layers whole; none is left for an adapter",
                           expected, "fewer modules in method.modules_to_save, or method=partial")  # fmt: skip
    inside = (name for name, _ in model.named_modules() if any(f"{name}.".startswith(f"{own}.") for own in saved))
    if any(named(name, pattern) for name in inside):
        return ConfigError(f"method.target_modules: '{pattern}' names only modules that method.modules_to_save trains "
                           "whole", expected, fix)  # fmt: skip
    return nothing_named("method.target_modules", pattern, ends_of(linear), "linear layer")


def _shortest(model: PreTrainedModel, names: List[str]) -> List[str]:
    """Return the last parts of the names (``q_proj``) if they select the same modules. Other programs expect short
    names."""
    ends = {name.rpartition(".")[2] for name in names}
    ended = {name for name, _ in model.named_modules() if name.rpartition(".")[2] in ends}
    return sorted(ends) if ended == set(names) else sorted(names)


@torch.no_grad()
def _draw_adapters(model: PreTrainedModel, seed: int) -> None:
    """Draw each A from the seed and its name, uniformly in ±1/√(number of inputs) as PEFT does."""
    for name, weight in model.named_parameters():
        if f".lora_A.{ADAPTER}." in name and not weight.is_meta:
            digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
            draw = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
            bound = 1 / math.sqrt(weight.shape[1])
            weight.copy_(torch.empty(weight.shape).uniform_(-bound, bound, generator=draw))


@contextmanager
def adapters_off(model: torch.nn.Module) -> Iterator[None]:
    """Compute without the adapters inside a ``with`` block: the base model, with what ``modules_to_save`` trained.

    PEFT's own switch would also freeze the adapters.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


@torch.no_grad()
def fold_adapters(model: torch.nn.Module) -> None:
    """Add each adapter to the weight of its layer. The sum is computed in fp32 and rounded once."""
    from peft.tuners.lora import LoraLayer

    for module in model.modules():
        if isinstance(module, LoraLayer):
            base = module.get_base_layer()
            dtype = base.weight.dtype
            module.float().merge(safe_merge=True)
            base.to(dtype)


def weight_of_rows(name: str) -> str:
    """Return the name of the weight that has as many rows as a tensor: that of the layer for B and for the magnitude of
    DoRA, and the tensor itself for others."""
    return re.sub(rf"\.lora_(B|magnitude_vector)\.{ADAPTER}\.weight$", ".weight", name)


def without_adapters(tensors: Dict[str, torch.Tensor]) -> Dict[str, torch.Tensor]:
    """Return the tensors of the base model by their names in a model without adapters."""
    return {name.replace(BASE_LAYER, "."): tensor for name, tensor in tensors.items() if ".lora_" not in name}
