"""Gather the whole weights and first moments of an engine from all ranks. This is for comparisons, not for training."""

from typing import Dict

import torch
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

from ftdist.engine.engine import Engine
from ftdist.engine.shards import unsharded_masters
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
            weights[name] = (masters[p] if masters else safe_get_full_fp32_param(p)).detach().float().clone()
        else:
            with gathered([p]):
                weights[name] = (p.view(torch.uint8) if is_quantized(p) else p.detach().float()).clone()
    return weights


def first_moments(engine: Engine) -> Tensors:
    """Return copies of Adam's first moments of the trained parameters in fp32, by name, on every rank.

    Every rank must call it.
    """
    trained = [(name, p) for name, p in engine.module.named_parameters() if p.requires_grad]
    masters = _unsharded_masters(engine)
    if masters:
        state = engine.optimizer.state
        moments = {name: state[masters[p]]["exp_avg"] for name, p in trained}
    else:
        _link_states(engine)
        moments = {name: safe_get_full_optimizer_state(p, "exp_avg") for name, p in trained}
    return {name: moment.detach().float().clone() for name, moment in moments.items()}


def _unsharded_masters(engine: Engine) -> Dict[torch.Tensor, torch.Tensor]:
    """Return the tensor that the optimizer updates for each parameter. The result is empty if ZeRO is used."""
    return {} if engine.stage else dict(unsharded_masters(engine.zero_optimizer))


def _link_states(engine: Engine) -> None:
    """Link each parameter to its optimizer states again.

    DeepSpeed 0.19 creates these links after the first group of parameters has taken its step. The links of the second
    group are then missing.
    """
    if engine.stage < 3:
        engine.zero_optimizer._hp_optimizer_states_linked = False
        engine.zero_optimizer._lazy_init_hp_params_optimizer_state()
