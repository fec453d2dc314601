"""Add a saved LoRA adapter to the weights of a model (``model.adapter``)."""

import math
import re
from pathlib import Path
from typing import Any, Dict, Iterable, List, Optional, Tuple

import torch
from safetensors import safe_open
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.pytorch_utils import Conv1D

from ftdist.base.errors import ConfigError
from ftdist.base.shell import override_word
from ftdist.model.parts import names_in_model, other_parts
from ftdist.model.vocabulary import gathered, whole_shape
from ftdist.run.adapters import BASE_COPY, FOLDED, PREFIX, adapter_settings, tensor_shapes
from ftdist.run.file_names import ADAPTER_WEIGHTS

A, B, MAGNITUDE = "lora_A.weight", "lora_B.weight", "lora_magnitude_vector"
"""Ends of the names of an adapter's tensors. The magnitude is that of DoRA."""
Shape = Tuple[int, ...]


def check_folded(model: PreTrainedModel, folder: Path) -> None:
    """Check that an adapter fits a model, which may have no weights.

    Raises:
        ConfigError: A tensor belongs to no layer of the model or has another shape, or ``trained_shapes`` fails.
    """
    settings, shapes = adapter_settings(FOLDED, folder), trained_shapes(FOLDED, model, folder)
    expected: Dict[str, Optional[Shape]] = {}
    for module in dict.fromkeys([*_adapted(shapes), *_targets(model, settings)]):
        out, into = _sizes(model, module)
        rows = {A: (settings["r"], into), B: (out, settings["r"])}
        expected |= {f"{PREFIX}{module}.{end}": shape if out else None for end, shape in rows.items()}
        if settings["use_dora"]:
            expected[f"{PREFIX}{module}.{MAGNITUDE}"] = (out,)
    own = dict(model.named_parameters(remove_duplicate=False))
    for name in shapes.keys() - expected.keys():
        parameter = own.get(name.removeprefix(PREFIX))
        expected[name] = None if parameter is None else tuple(whole_shape(parameter))
    for name in sorted(expected):
        if name in shapes and expected[name] is None:
            raise no_place(FOLDED, model, folder, name, shapes[name])
        if shapes.get(name) != expected[name]:
            raise misfit(FOLDED, folder, name, shapes.get(name), expected[name])


def trained_shapes(key: str, model: PreTrainedModel, folder: Path) -> Dict[str, Shape]:
    """Return the shapes of the trained tensors of an adapter, by the names that PEFT gives them in this model.

    Args:
        key: The setting that names the adapter, for messages.
        model: The model that it is for, which may have no weights.

    Raises:
        ConfigError: The model ties the embedding and the output head, but the adapter treats them as two tensors: it
        has LoRA matrices for one of them, or holds a trained copy of only one, or copies that differ. PEFT makes a
        separate copy of each module in ``modules_to_save``.
    """
    stored, in_file = stored_names(model, folder), tensor_shapes(folder / ADAPTER_WEIGHTS)
    shapes = {name: in_file[own] for name, own in stored.items()}
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head is None or head.weight is not embedding.weight:
        return shapes
    owners = [name for name, module in model.named_modules() if module is embedding or module is head]
    for owner in owners:
        if any(name.startswith(f"{PREFIX}{owner}.lora_") for name in shapes):
            raise ConfigError(f"{key}={folder} has an adapter for {owner}, but the model has one tensor for "
                              f"{' and '.join(owners)}. Adding the adapter would change both",
                              "an adapter for other layers",
                              f"leave out {key}, or train an adapter without {owner}")  # fmt: skip
    names = [f"{name}.weight" for name in owners]
    there = [name for name in names if PREFIX + name in shapes]
    with safe_open(folder / ADAPTER_WEIGHTS, framework="pt") as file:
        first, *others = [file.get_tensor(stored[PREFIX + name]) for name in there] or [torch.empty(0)]
        equal = all(other.equal(first) for other in others)
    if there and not (equal and there == names):
        what = f"other numbers in {there[0]} than in {there[1]}" if there[1:] else f"{there[0]} alone"
        raise ConfigError(
            f"{key}={folder} holds {what}, but the model has one tensor for {' and '.join(names)}",
            "an adapter that holds both, with equal numbers (ensure_weight_tying in PEFT)",
            "merge it into its base with PEFT, save that with tie_word_embeddings=false, and set model.path to it",
        )  # fmt: skip
    return shapes


def stored_names(model: PreTrainedModel, folder: Path) -> Dict[str, str]:
    """Return the names of the trained tensors in the file of an adapter, by the names that PEFT gives them in this
    model."""
    names = [name for name in tensor_shapes(folder / ADAPTER_WEIGHTS) if not name.endswith(BASE_COPY)]
    renamed, found = renamed_modules(model, folder), {}
    for name in names:
        module = _module_of(name)
        found[PREFIX + renamed.get(module, module) + name.removeprefix(PREFIX + module)] = name
    return found if len(found) == len(names) else {name: name for name in names}


def renamed_modules(model: PreTrainedModel, folder: Path) -> Dict[str, str]:
    """Return the modules of an adapter that have another name in this model: the new name by the old one."""
    return new_names(model, {_module_of(name) for name in tensor_shapes(folder / ADAPTER_WEIGHTS)})


def new_names(model: PreTrainedModel, modules: Iterable[str]) -> Dict[str, str]:
    """Return the names that modules have in this model, by the names that they had in transformers 4.

    transformers 5 has renamed modules of models with images (``language_model.model.layers`` of Gemma 3 is now
    ``model.language_model.layers``), and renames the tensors of their files when it reads them. This function gives the
    new names for adapters. PEFT renames adapters only for some of these models, and never ``modules_to_save``.

    Returns:
        The new name of each module that has one.
    """
    own = {name for name, _ in model.named_modules()}
    other = sorted(set(modules) - own)
    if not other:
        return {}
    weights = names_in_model(model, [f"{name}.weight" for name in other], get_model_conversion_mapping(model))
    places = {old.removesuffix(".weight"): new for old, new in weights.items()}
    return {old: new.removesuffix(".weight") for old, new in places.items() if new.removesuffix(".weight") in own}


def key_mapping(renamed: Dict[str, str]) -> Optional[Dict[str, str]]:
    """Return new names of modules as PEFT takes them: the replacement of each pattern. None: nothing is renamed."""
    return {rf"^{re.escape(old)}\.": f"{new}." for old, new in renamed.items()} or None


def _module_of(name: str) -> str:
    """Return the name of the module that a tensor of an adapter belongs to."""
    module, adapter, _ = name.removeprefix(PREFIX).partition(".lora_")
    return module if adapter else module.rpartition(".")[0]


def no_place(key: str, model: PreTrainedModel, folder: Path, name: str, shape: Shape) -> ConfigError:
    """Return the error for a tensor of an adapter that is for no trained parameter of the model.

    Args:
        key: The setting that names the adapter.
    """
    module = _module_of(name)
    other = {id(parameter) for part in other_parts(model).values() for parameter in part}
    own = dict(model.named_modules()).get(module)
    if own is not None and any(id(parameter) in other for parameter in own.parameters()):
        instead = override_word(FOLDED, str(folder))
        return ConfigError(f"{key}={folder} adapts {module}, a part for images or sound, which is not trained",
                           "an adapter of the language part",
                           f"{instead} instead of {key}: the base model then has this adapter, and the run trains a "
                           "new one")  # fmt: skip
    place = names_in_model(model, [f"{module}.weight"], get_model_conversion_mapping(model))[f"{module}.weight"]
    if own is None and place in dict(model.named_parameters()):
        return ConfigError(f"{key}={folder} adapts {module}, which in transformers 5 is a part of the tensor {place}",
                           "an adapter of linear layers", "merge it into its base with the versions of PEFT and "
                           "transformers that trained it, and set model.path to the result")  # fmt: skip
    return misfit(key, folder, name, shape, None)


def misfit(key: str, folder: Path, name: str, found: Optional[Shape], expected: Optional[Shape]) -> ConfigError:
    """Return the error for a tensor of an adapter that does not fit the model.

    Args:
        key: The setting that names the adapter.
        found: Shape in the file, None if it is not there.
        expected: Shape in the model, None if the model has no such tensor.
    """
    there = "is missing" if found is None else f"has the shape {list(found)}"
    here = "has no such tensor" if expected is None else f"needs {list(expected)}"
    return ConfigError(f"{key}={folder} does not fit the model: {name.removeprefix(PREFIX)} {there}, and the model "
                       f"{here}", "an adapter of this model, with the same tokens",
                       f"the base model of the adapter, or leave out {key}")  # fmt: skip


def _targets(model: PreTrainedModel, settings: Dict[str, Any]) -> List[str]:
    """Return the linear layers that an adapter's settings name, without layers in parts for images or sound."""
    other = {id(parameter) for part in other_parts(model).values() for parameter in part}
    kept = [f"{name}." for name in settings["modules_to_save"]]
    return [
        name for name, module in model.named_modules()
        if isinstance(module, (torch.nn.Linear, Conv1D)) and id(module.weight) not in other
        and any(f".{name}".endswith(f".{target}") for target in settings["target_modules"])
        and not any(f".{own}" in f".{name}." for own in kept)
    ]  # fmt: skip


def _adapted(shapes: Dict[str, Shape]) -> List[str]:
    """Return the modules that have an adapter."""
    ends = (f".{A}", f".{B}", f".{MAGNITUDE}")
    found = {name.removeprefix(PREFIX).removesuffix(end): None for name in shapes for end in ends if name.endswith(end)}
    return list(found)


def _sizes(model: PreTrainedModel, name: str) -> Shape:
    """Return the numbers of outputs and inputs of a linear layer; (0, 0) if there is no such layer."""
    try:
        module: Any = model.get_submodule(name)
    except AttributeError:
        return 0, 0
    if not isinstance(module, (torch.nn.Linear, Conv1D)):
        return 0, 0
    shape = tuple(whole_shape(module.weight))
    return shape[::-1] if isinstance(module, Conv1D) else shape


@torch.no_grad()
def fold_adapter(model: PreTrainedModel, folder: Path) -> None:
    """Add an adapter to the weights of a model: computed in fp32, rounded to the type of the weights once.

    With ZeRO-3, every rank must call this function. It gathers one layer at a time.

    Raises:
        ConfigError: The adapter does not fit the model.
    """
    check_folded(model, folder)
    settings, stored = adapter_settings(FOLDED, folder), stored_names(model, folder)
    scale = adapter_scale(settings["r"], settings["lora_alpha"], settings["use_rslora"])
    own = dict(model.named_parameters(remove_duplicate=False))
    with safe_open(folder / ADAPTER_WEIGHTS, framework="pt") as file:
        names = sorted(stored)  # the same order on every rank, because each layer is gathered from all of them
        for module in _adapted(dict.fromkeys(names, ())):
            layer: Any = model.get_submodule(module)
            tensors = {name.rpartition(f"{module}.")[2]: file.get_tensor(stored[name])
                       for name in names if name.startswith(f"{PREFIX}{module}.lora_")}  # fmt: skip
            with gathered([layer.weight]):
                if layer.weight.numel():
                    layer.weight.copy_(folded(layer, tensors, scale))
        for name in (name for name in names if ".lora_" not in name):  # modules that were trained whole
            parameter = own[name.removeprefix(PREFIX)]
            with gathered([parameter]):
                if parameter.numel():
                    parameter.copy_(file.get_tensor(stored[name]))


def adapter_scale(r: int, alpha: float, rank_stabilized: bool) -> float:
    """Return the factor of B·A (rsLoRA: Kalajdzievski 2023, https://arxiv.org/abs/2312.03732)."""
    return alpha / (math.sqrt(r) if rank_stabilized else r)


def folded(layer: Any, tensors: Dict[str, torch.Tensor], scale: float) -> torch.Tensor:
    """Return the weight of a layer with its adapter, in fp32: W + scale · B·A, with DoRA's length of each row.

    Args:
        tensors: The tensors of the adapter, by the ends of their names: ``A``, ``B`` and, with DoRA, ``MAGNITUDE``.
    """
    here = {end: tensor.to(layer.weight.device, torch.float32) for end, tensor in tensors.items()}
    weight = layer.weight.float()
    weight = weight.T if isinstance(layer, Conv1D) else weight
    total = weight + (here[B] @ here[A]) * scale
    if MAGNITUDE in here:
        total = total * (here[MAGNITUDE] / total.norm(dim=1))[:, None]
    return total.T if isinstance(layer, Conv1D) else total
