"""Gather the whole weights and gradients of an engine from all ranks. This is for comparisons, not for training."""

from typing import Dict

import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_fp32_param

from ftdist.engine.engine import Engine
from ftdist.engine.expert_groups import part_of
from ftdist.engine.shards import held_slices, unsharded_masters
from ftdist.model.quantized import is_quantized
from ftdist.model.vocabulary import gathered

Tensors = Dict[str, torch.Tensor]


def whole_weights(engine: Engine) -> Tensors:
    """Return copies of the fp32 master weights, by name, on every rank. Every rank must call it.

    Frozen parameters have no master weights. Their weights are returned in fp32; those in 4 bits as packed bytes.
    """
    masters, weights = _unsharded_masters(engine), {}
    for name, p in engine.module.named_parameters():
        if p.requires_grad:
            value = (masters[p] if masters else safe_get_full_fp32_param(p)).detach().float().clone()
        else:
            with gathered([p]):
                value = (p.view(torch.uint8) if is_quantized(p) else p.detach().float()).clone()
        part = part_of(name, p)
        if part.name == name:
            weights[name] = value
        else:  # a group of experts
            whole = weights.setdefault(part.name, torch.empty(part.shape, device=value.device))
            whole.view(-1)[part.start : part.start + value.numel()] = value.view(-1)
    return weights


class ReceivedGradients:
    """The gradients that the optimizer receives: after all reductions and clipping, just before the update."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._received: Dict[torch.Tensor, torch.Tensor] = {}
        engine.gate.before_update = self._copy

    def _copy(self) -> None:
        """Copy the gradients of what is updated now. With ZeRO-3 this is a part of what is updated in a step."""
        for group in self._engine.optimizer.param_groups:
            self._received |= {p: p.grad.detach().float().clone() for p in group["params"] if p.grad is not None}

    def take(self) -> Tensors:
        """Return the gradients of the last update as whole tensors, by name, on every rank. Every rank must call it."""
        gradients = {}
        device = next(self._engine.module.parameters()).device
        for name, shape in self._engine.trained_shapes().items():
            gradients[name] = torch.zeros(shape, device=device)
        for part in held_slices(self._engine):
            flat = gradients[part.name].view(-1)
            flat[part.start : part.start + part.length] = part.of(self._received[part.flat])
        if self._engine.stage:
            for gradient in gradients.values():
                dist.all_reduce(gradient)
        self._received.clear()
        return gradients


def _unsharded_masters(engine: Engine) -> Dict[torch.Tensor, torch.Tensor]:
    """Return the tensor that the optimizer updates for each parameter. The result is empty if ZeRO is used."""
    return {} if engine.stage else dict(unsharded_masters(engine.zero_optimizer))
