"""Where DeepSpeed stores the training state of a rank, at every ZeRO stage.

DeepSpeed keeps the fp32 master weights and the optimizer's states in flat tensors. Each flat tensor holds slices of
many parameters. This module describes these slices. The 16-bit weights are the rounded master weights, so they are not
part of the state. The attributes and methods of DeepSpeed that are used here are those of version 0.19. Tests compare
every number.
"""

import math
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Dict, Iterator, List, Protocol, Sequence, Tuple

import torch
import torch.distributed as dist
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

from ftdist.base.errors import ConfigError
from ftdist.engine.expert_groups import part_of


class Engine(Protocol):
    """The parts of ``ftdist.engine.engine.Engine`` that this module reads."""

    module: Any

    @property
    def stage(self) -> int: ...
    @property
    def zero_optimizer(self) -> Any: ...


@dataclass(frozen=True)
class Slice:
    """Elements ``start … start + length − 1`` of a flattened parameter, and where they are stored."""

    name: str
    """Name of the parameter in the model, also if it is divided into groups of experts."""
    start: int
    length: int
    flat: torch.Tensor
    """The tensor of the optimizer that holds these master weights. It is the key of their optimizer states."""
    offset: int
    """Index of the first of these elements in ``flat``."""

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the part of ``flat``, or of a state of the same shape, that belongs to this slice, [length]."""
        return tensor.detach().view(-1)[self.offset : self.offset + self.length]


def held_slices(engine: Engine) -> List[Slice]:
    """Return every slice of a trained parameter that this rank holds, in a fixed order.

    Raises:
        ConfigError: Optimizer states are offloaded to NVMe.
    """
    named = dict(engine.module.named_parameters())
    names, parts = {id(p): name for name, p in named.items()}, {name: part_of(name, p) for name, p in named.items()}
    slices = [
        replace(held, name=parts[held.name].name, start=held.start + parts[held.name].start)
        for held in _slices(engine.zero_optimizer, names)
        if held.length > 0
    ]
    if any(part.offset + part.length > part.flat.numel() for part in slices):
        raise ConfigError("optimizer states on NVMe cannot be saved", "states in GPU or host memory",
                          "set zero.offload_optimizer=cpu and remove the NVMe settings")  # fmt: skip
    return slices


def unsharded(engine: Engine) -> List[str]:
    """Return the names of the parameters that ZeRO-3 leaves whole on every rank. Small ones stay whole on purpose."""
    return [name for name, parameter in engine.module.named_parameters()
            if not hasattr(parameter, "ds_tensor")
            or (not parameter.ds_persist and parameter.ds_tensor.numel() != parameter.partition_numel())]  # fmt: skip


def slices_to_save(engine: Engine) -> List[Slice]:
    """Return the slices that this rank saves. Over all ranks, each element is saved exactly once.

    Without ZeRO every rank holds all parameters, and each rank saves an equal share of them.
    """
    slices = held_slices(engine)
    if engine.stage:
        return slices
    rank, world_size, shares = dist.get_rank(), dist.get_world_size(), []
    for part in slices:
        size = math.ceil(part.length / world_size)
        length = min(size, part.length - rank * size)
        if length > 0:
            shares.append(Slice(part.name, rank * size, length, part.flat, part.offset + rank * size))
    return shares


def _slices(optimizer: Any, names: Dict[int, str]) -> Iterator[Slice]:
    rank = dist.get_rank()
    if isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
        for group, flat in zip(optimizer.fp16_groups, optimizer.fp32_partitioned_groups_flat, strict=True):
            offset = 0
            for parameter in group:  # is cut into equal parts, one for each rank; the last part is padded
                size = parameter.partition_numel()
                length = min(size, parameter.ds_numel - rank * size)
                yield Slice(names[id(parameter)], rank * size, length, flat, offset)
                offset += size
    elif isinstance(optimizer, DeepSpeedZeroOptimizer):
        for group, offsets, flat in zip(optimizer.round_robin_bit16_groups, optimizer.round_robin_bit16_offsets,
                                        optimizer.single_partition_of_fp32_groups, strict=True):  # fmt: skip
            yield from _cut(flat, [(names[id(p)], at, p.numel()) for p, at in zip(group, offsets, strict=True)])
    elif isinstance(optimizer, BF16_Optimizer):
        for group, flat in zip(optimizer.bf16_groups, optimizer.fp32_groups_flat_partition, strict=True):
            ends = torch.tensor([p.numel() for p in group]).cumsum(0).tolist()
            yield from _cut(flat, [(names[id(p)], end - p.numel(), p.numel())
                                   for p, end in zip(group, ends, strict=True)])  # fmt: skip
    else:
        for parameter, master in unsharded_masters(optimizer):
            yield Slice(names[id(parameter)], 0, master.numel(), master, 0)


def _cut(flat: torch.Tensor, members: Sequence[Tuple[str, int, int]]) -> Iterator[Slice]:
    """Yield the slices of one group of parameters that this rank holds in ``flat``.

    DeepSpeed concatenates the parameters of a group and cuts the result into equal parts, one for each rank.

    Args:
        members: Name, first index in the group and number of elements of each parameter.
    """
    first = dist.get_rank() * flat.numel()
    for name, at, count in members:
        low, high = max(at, first), min(at + count, first + flat.numel())
        yield Slice(name, low - at, high - low, flat, low - first)


def unsharded_masters(optimizer: Any) -> Iterator[Tuple[torch.Tensor, torch.Tensor]]:
    """Yield each parameter and its fp32 master weight, for training without ZeRO. In fp32 they are the same tensor."""
    if isinstance(optimizer, FP16_UnfusedOptimizer):
        for parameters, masters in zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True):
            yield from zip(parameters, masters, strict=True)
    else:
        yield from ((parameter, parameter) for group in optimizer.param_groups for parameter in group["params"])


@contextmanager
def rewriting(engine: Engine) -> Iterator[List[Slice]]:
    """Let the master weights and optimizer states of this rank be replaced inside a ``with`` block.

    Every rank must enter it. Afterwards the weights that the model computes with are set to the rounded masters.

    Yields:
        The slices that this rank holds.
    """
    optimizer = engine.zero_optimizer
    if isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
        optimizer.checkpoint_event_prologue()
    with torch.no_grad():
        yield held_slices(engine)
        _round_weights(optimizer)


def _round_weights(optimizer: Any) -> None:
    """Set the weights that the model computes with to the rounded masters."""
    if isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
        for index in range(len(optimizer.fp32_partitioned_groups_flat)):
            optimizer._reassign_or_swap_out_partitioned_parameters(index)
        optimizer.checkpoint_event_epilogue()
    elif isinstance(optimizer, (DeepSpeedZeroOptimizer, BF16_Optimizer)):
        optimizer.update_lp_params()
    else:
        for parameter, master in unsharded_masters(optimizer):
            parameter.data.copy_(master)
