"""Build the optimizer of a run. ``ftdist.plan.optimizers`` says what it keeps for each parameter."""

from typing import Any, Callable, Dict, List

import torch

from ftdist.config.schema import OptimConfig, OptimizerKind

Groups = List[Dict[str, Any]]


def build_optimizer(optim: OptimConfig, model: torch.nn.Module) -> torch.optim.Optimizer:
    """Build the optimizer that ``optim.optimizer`` names, over the trained parameters. Its learning rate is 0."""
    return BUILDERS[optim.optimizer](parameter_groups(model, optim.weight_decay), optim)


def parameter_groups(model: torch.nn.Module, weight_decay: float) -> Groups:
    """Return the trained parameters in two groups: matrices with weight decay, norms and biases (one dim) without."""
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in trained if len(parameter_shape(p)) > 1]
    vectors = [p for p in trained if len(parameter_shape(p)) <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def parameter_shape(parameter: torch.nn.Parameter) -> torch.Size:
    """Return the shape of the whole parameter. With ZeRO-3 the tensor itself is empty."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))


def _adamw(groups: Groups, optim: OptimConfig) -> torch.optim.Optimizer:
    """Build AdamW (Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101)."""
    return torch.optim.AdamW(groups, lr=0.0, betas=(optim.beta1, optim.beta2), eps=optim.eps, fused=True)


BUILDERS: Dict[OptimizerKind, Callable[[Groups, OptimConfig], torch.optim.Optimizer]] = {OptimizerKind.adamw: _adamw}
