"""Weights and moments of an engine in full, however they are sharded: for comparisons, not for training."""

from typing import Any, Dict

import torch
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

from ftdist.engine.shards import adamw, unsharded_masters

Tensors = Dict[str, torch.Tensor]


def whole_weights(engine: Any) -> Tensors:
    """The fp32 (master) weights by name, copies on every rank. Every rank calls it."""
    masters = _unsharded_masters(engine)
    return {
        name: (masters[p] if masters else safe_get_full_fp32_param(p)).detach().float().clone()
        for name, p in engine.module.named_parameters()
    }


def first_moments(engine: Any) -> Tensors:
    """Adam's first moments by name, copies in fp32 on every rank. Every rank calls it."""
    masters = _unsharded_masters(engine)
    if masters:
        state = adamw(engine).state
        moments = {name: state[masters[p]]["exp_avg"] for name, p in engine.module.named_parameters()}
    else:
        _link_states(engine)
        moments = {n: safe_get_full_optimizer_state(p, "exp_avg") for n, p in engine.module.named_parameters()}
    return {name: moment.detach().float().clone() for name, moment in moments.items()}


def _unsharded_masters(engine: Any) -> Dict[torch.Tensor, torch.Tensor]:
    """Which tensor the optimizer updates for each parameter. Empty with ZeRO."""
    return {} if engine.zero_optimization() else dict(unsharded_masters(engine.optimizer))


def _link_states(engine: Any) -> None:
    """DeepSpeed 0.19 notes where a parameter's states are when the first group of parameters has taken its step, and so
    misses those of the second: let it do that again."""
    if engine.zero_optimization_stage() < 3:
        engine.optimizer._hp_optimizer_states_linked = False
        engine.optimizer._lazy_init_hp_params_optimizer_state()
