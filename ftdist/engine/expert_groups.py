"""Divide the experts of each layer into groups, so that ZeRO-3 gathers one group at a time (``zero.expert_groups``).

transformers 5 keeps the experts of a layer in parameters like ``gate_up_proj`` [experts, 2 · inner, hidden], and ZeRO-3
gathers whole parameters. Here such a module gets one submodule for each group of experts, with the rows of the
parameters that belong to these experts. Each submodule is of the module's own class, and gets the tokens of its
experts only. Every rank runs all groups in the same order, also those without tokens, so that the ranks gather and
reduce together.

Checkpoints do not depend on the groups: each parameter of a group knows which part of which parameter of the model it
is (``part_of``).
"""

import inspect
import math
from dataclasses import dataclass
from functools import partial
from typing import Any, Dict, List

import torch

from ftdist.base.errors import ConfigError
from ftdist.model.isolation import ROUNDING
from ftdist.model.vocabulary import gathered, whole_shape

MARK = "ftdist_part"
PROBE_TOKENS, PROBE_CHOICES = 16, 2
"""Number of random tokens, and of experts for each token, in the comparison of the groups with the module."""


@dataclass(frozen=True)
class Part:
    """The elements of a parameter of the model that a parameter of a group holds."""

    name: str
    """Name of the parameter of the model."""
    shape: torch.Size
    """Its whole shape."""
    start: int
    """Index of the first of the elements in the flattened parameter."""


def part_of(name: str, parameter: torch.nn.Parameter) -> Part:
    """Return the part of a parameter of the model that this parameter holds. If it belongs to no group, it is its own
    part."""
    part: Part = getattr(parameter, MARK, None) or Part(name, whole_shape(parameter), 0)
    return part


def experts_in_turn(model: torch.nn.Module) -> List[torch.nn.Module]:
    """Return the modules that call a submodule with weights once for each expert that has tokens (DBRX).

    With ZeRO-3 the ranks would gather its weights different numbers of times, and wait for each other.
    """
    return [module for name, module in model.named_modules()
            if name.endswith(".experts") and isinstance(getattr(module, "num_experts", None), int)
            and not any(True for _ in module.parameters(recurse=False)) and any(True for _ in module.parameters())
            and not hasattr(module, "groups")]  # fmt: skip


@torch.no_grad()
def group_experts(model: torch.nn.Module, groups: int) -> int:
    """Divide the experts of each layer into groups. With ZeRO-3 every rank must call it.

    Args:
        groups: Number of groups. A layer with fewer experts gets one group for each expert.

    Returns:
        The number of layers.

    Raises:
        ConfigError: The model has no experts that can be divided, or the groups compute something else.
    """
    fused = [(name, module) for name, module in model.named_modules() if _is_fused(module)]
    if not fused:
        raise ConfigError(f"zero.expert_groups={groups}, but this model has no experts that can be divided",
                          "experts that run through the common code of transformers (not Llama 4, LongCat, JetMoE)",
                          "zero.expert_groups=1")  # fmt: skip
    for number, (name, module) in enumerate(fused):
        width = whole_shape(module.down_proj)[2 if module.is_transposed else 1]
        before = None if number else _probe(module, [module], width)
        _divide(module, name, groups)
        if before is not None:
            after = _probe(module, list(module.groups), width)
            if not (after - before).abs().max() <= ROUNDING[before.dtype] * before.abs().max():
                raise ConfigError(f"zero.expert_groups={groups}: groups of {type(module).__name__} do not compute what "
                                  "all experts together compute", "experts that do not depend on each other",
                                  "zero.expert_groups=1")  # fmt: skip
    return len(fused)


def _is_fused(module: Any) -> bool:
    """Return whether transformers runs a module as experts, and all its parameters have a row for each expert."""
    below = [parameter for child in module.children() for parameter in child.parameters()]
    if below or not hasattr(module, "_is_expert_parallel"):
        return False
    return {whole_shape(parameter)[0] for parameter in module.parameters()} == {module.num_experts}


def _divide(module: Any, name: str, groups: int) -> None:
    for own_name, child in list(module.named_children()):  # an activation function
        # DeepSpeed requires all ranks to run the same submodules, but a group without tokens runs no function.
        delattr(module, own_name)
        vars(module)[own_name] = child
    sizes = [len(part) for part in torch.arange(module.num_experts).tensor_split(min(groups, module.num_experts))]
    parts = [_empty_part(module, size) for size in sizes]
    for own_name, whole in list(module.named_parameters(recurse=False)):
        shape, shared = whole_shape(whole), hasattr(whole, "ds_id")
        row, first = math.prod(shape[1:]), 0
        with gathered([whole], changed=False):
            for part, size in zip(parts, sizes, strict=True):
                piece = torch.nn.Parameter(whole[first : first + size].clone(), requires_grad=whole.requires_grad)
                setattr(piece, MARK, Part(f"{name}.{own_name}", shape, first * row))
                part.register_parameter(own_name, piece)
                if shared:
                    whole.convert_to_zero_parameters(param_list=[piece])
                first += size
        delattr(module, own_name)
        if shared:
            shard = whole.ds_tensor  # DeepSpeed's references to it form a cycle, which may live for long
            shard.data = shard.data.new_empty(0)
    module.groups = torch.nn.ModuleList(parts)
    module.forward = partial(_run, module, list(inspect.signature(module.forward).parameters))


def _empty_part(module: Any, size: int) -> Any:
    """Return a module of the same class for ``size`` experts, without parameters."""
    part = object.__new__(type(module))
    torch.nn.Module.__init__(part)
    vars(part).update({name: value for name, value in vars(module).items() if not hasattr(torch.nn.Module(), name)})
    part.num_experts, part.forward = size, partial(_run_part, part)
    return part.train(module.training)


def _run(module: Any, names: List[str], *args: torch.Tensor, **kwargs: torch.Tensor) -> torch.Tensor:
    """Run all groups.

    The arguments are those of the module: hidden states [tokens, hidden], the numbers of the chosen experts
    [tokens, k], and their weights [tokens, k]. Returns [tokens, hidden].
    """
    given: Dict[str, torch.Tensor] = {**dict(zip(names, args, strict=False)), **kwargs}
    hidden, chosen, weights = (given[name] for name in names[:3])
    choices = chosen.shape[-1]
    ends = torch.tensor([part.num_experts for part in module.groups], device=hidden.device).cumsum(0)
    group = torch.bucketize(chosen.reshape(-1), ends, right=True)
    order = group.argsort(stable=True)
    counts = torch.bincount(group, minlength=len(ends)).tolist()
    outputs, first = [], 0
    for part, rows in zip(module.groups, order.split(counts), strict=True):
        own = chosen.reshape(-1)[rows] - first
        outputs.append(part(hidden[rows // choices], own[:, None], weights.reshape(-1)[rows][:, None]))
        first += part.num_experts
    return torch.cat(outputs)[order.argsort()].view(-1, choices, hidden.shape[-1]).sum(1)


def _run_part(part: Any, hidden: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Run one group on the tokens of its experts. Without tokens its parameters get gradients of 0."""
    if len(hidden):
        outputs: torch.Tensor = type(part).forward(part, hidden, chosen, weights)
        return outputs
    return hidden + torch.cat([tensor.reshape(-1)[:0] for tensor in (weights, *part.parameters())]).sum()


def _probe(module: Any, holders: List[Any], width: int) -> torch.Tensor:
    """Return what a module computes for random tokens, [tokens, width].

    Args:
        holders: The modules that hold its parameters.
        width: Size of the hidden states.
    """
    weights = [parameter for holder in holders for parameter in holder.parameters()]
    draw, device, dtype = torch.Generator().manual_seed(0), weights[0].device, weights[0].dtype
    hidden = torch.randn(PROBE_TOKENS, width, generator=draw)
    chosen = torch.randint(module.num_experts, (PROBE_TOKENS, PROBE_CHOICES), generator=draw)
    shares = torch.rand(PROBE_TOKENS, PROBE_CHOICES, generator=draw)
    with gathered(weights, changed=False):
        output: torch.Tensor = module(hidden.to(device, dtype), chosen.to(device), shares.to(device, dtype))
    return output
