"""What of the training state a rank holds, at every ZeRO stage, and how to put it back.

DeepSpeed keeps fp32 master weights and AdamW's two moments in flat tensors that hold slices of many parameters. Here
they are seen as what they are slices of. The 16-bit weights are the masters, rounded: they are not saved, and follow
from them. Lists and methods of DeepSpeed that are used here are its 0.19's own; tests compare every number.
"""

import math
from dataclasses import dataclass
from typing import Any, Dict, Iterator, List, Sequence, Tuple

import torch
import torch.distributed as dist
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

from ftdist.base.errors import ConfigError
from ftdist.checkpoint.tensors import Stored, key_of
from ftdist.engine.engine import parameter_shape

MASTER, BUFFER = "master", "buffer"
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Slice:
    """Elements ``start … start + length − 1`` of a flattened parameter, and where they lie."""

    name: str
    start: int
    length: int
    flat: torch.Tensor
    """The optimizer's own tensor that holds them; its states are found by it."""
    offset: int
    """Where they begin in ``flat``."""

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """The part of ``flat``, or of a state of the same shape, [length]."""
        return tensor.detach().view(-1)[self.offset : self.offset + self.length]


def held(engine: Any) -> List[Slice]:
    """Every slice of a trained parameter that this rank holds, in a fixed order.

    Raises:
        ConfigError: optimizer states lie on NVMe.
    """
    names = {id(parameter): name for name, parameter in engine.module.named_parameters()}
    slices = [part for part in _slices(engine.optimizer, names) if part.length > 0]
    if any(part.offset + part.length > part.flat.numel() for part in slices):
        raise ConfigError("optimizer states on NVMe cannot be saved", "states in GPU or host memory",
                          "zero.offload_optimizer=cpu in place of the NVMe settings")  # fmt: skip
    return slices


def owned(engine: Any) -> List[Slice]:
    """The slices that this rank saves: those of all ranks together are every element once. Without ZeRO all ranks hold
    all, and each saves a share."""
    slices = held(engine)
    if engine.zero_optimization():
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
            for parameter in group:  # each parameter is dealt out to the ranks, the last one's part padded
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
    """A group of parameters laid end to end (name, where it begins, elements) is dealt out to the ranks in equal parts;
    ``flat`` is this rank's."""
    first = dist.get_rank() * flat.numel()
    for name, at, count in members:
        low, high = max(at, first), min(at + count, first + flat.numel())
        yield Slice(name, low - at, high - low, flat, low - first)


def unsharded_masters(optimizer: Any) -> Iterator[Tuple[torch.Tensor, torch.Tensor]]:
    """Without ZeRO: each parameter and its fp32 master, which in fp32 is the parameter itself."""
    if isinstance(optimizer, FP16_UnfusedOptimizer):
        for parameters, masters in zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True):
            yield from zip(parameters, masters, strict=True)
    else:
        yield from ((parameter, parameter) for group in optimizer.param_groups for parameter in group["params"])


def adamw(engine: Any) -> Any:
    """PyTorch's optimizer inside the engine's."""
    return getattr(engine.optimizer, "optimizer", engine.optimizer)


def optimizer_step(engine: Any) -> int:
    """Updates that AdamW has made; 0 where it has no moments yet."""
    return max((int(state["step"]) for state in adamw(engine).state.values() if "step" in state), default=0)


def parameter_shapes(engine: Any) -> Dict[str, List[int]]:
    """Of every trained parameter, whole."""
    return {name: list(parameter_shape(p)) for name, p in engine.module.named_parameters() if p.requires_grad}


def buffers(engine: Any) -> Dict[str, torch.Tensor]:
    """What belongs to the model and is not trained (those that the model saves too)."""
    kept = engine.module.state_dict().keys()
    return {name: tensor for name, tensor in engine.module.named_buffers() if name in kept}


def tensors_to_save(engine: Any) -> Dict[str, torch.Tensor]:
    """This rank's part of the state, by the name of its entry: live tensors, no copies."""
    states, has_moments, tensors = adamw(engine).state, optimizer_step(engine) > 0, {}
    for part in owned(engine):
        tensors[key_of(MASTER, part.start, part.name)] = part.of(part.flat)
        for moment in MOMENTS if has_moments else ():
            tensors[key_of(moment, part.start, part.name)] = part.of(states[part.flat][moment])
    if dist.get_rank() == 0:
        tensors |= {key_of(BUFFER, 0, name): tensor.view(-1) for name, tensor in buffers(engine).items()}
    return tensors


@torch.no_grad()
def restore(engine: Any, stored: Stored, step: int) -> None:
    """Put the state back, whatever stage and number of ranks saved it. Every rank calls it.

    Args:
        step: what ``optimizer_step`` was.
    """
    optimizer, states, slices = engine.optimizer, adamw(engine).state, held(engine)
    if isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
        optimizer.checkpoint_event_prologue()
    if step == 0:
        states.clear()
    for flat in {id(part.flat): part.flat for part in slices}.values():
        flat.zero_()  # padding, which no slice covers
        if step:
            states[flat] = {"step": torch.tensor(float(step), device=flat.device),
                            **{moment: torch.zeros_like(flat) for moment in MOMENTS}}  # fmt: skip
    for part in slices:
        part.of(part.flat).copy_(stored.read(MASTER, part.name, part.start, part.length))
        for moment in MOMENTS if step else ():
            part.of(states[part.flat][moment]).copy_(stored.read(moment, part.name, part.start, part.length))
    for name, buffer in buffers(engine).items():
        buffer.copy_(stored.whole(BUFFER, name, buffer.shape))
    _round_weights(optimizer)


def _round_weights(optimizer: Any) -> None:
    """The weights that the model computes with follow the masters."""
    if isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
        for index in range(len(optimizer.fp32_partitioned_groups_flat)):
            optimizer._reassign_or_swap_out_partitioned_parameters(index)
        optimizer.checkpoint_event_epilogue()
    elif isinstance(optimizer, (DeepSpeedZeroOptimizer, BF16_Optimizer)):
        optimizer.update_lp_params()
    else:
        for parameter, master in unsharded_masters(optimizer):
            parameter.data.copy_(master)
