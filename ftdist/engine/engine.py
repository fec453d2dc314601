"""The ZeRO engine: the model, AdamW and DeepSpeed's sharding of both."""

import math
from typing import Any, Callable, Dict, List, Tuple

import deepspeed
import torch

from ftdist.config.schema import RunConfig


def parameter_shape(parameter: torch.nn.Parameter) -> torch.Size:
    """The whole parameter's shape; under ZeRO-3 the tensor itself is empty."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))


def parameter_groups(model: torch.nn.Module, weight_decay: float) -> List[Dict[str, Any]]:
    """Matrices with weight decay; norms and biases (one dim) without."""
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in trained if len(parameter_shape(p)) > 1]
    vectors = [p for p in trained if len(parameter_shape(p)) <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def build_engine(config: RunConfig, model: torch.nn.Module, settings: Dict[str, Any]) -> Any:
    """The DeepSpeed engine. The learning rate is the loop's to set, a step at a time; there is no scheduler here.

    Where bf16 runs without ZeRO, DeepSpeed 0.19 takes an optimizer step when it is built, to allocate the states: it
    would decay the weights once and put Adam's bias correction a step ahead for the whole run. So the learning rate is
    0 until the loop sets it, and those states are dropped.
    """
    optim, groups = config.optim, parameter_groups(model, config.optim.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(optim.beta1, optim.beta2), eps=optim.eps, fused=True)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings, dist_init_required=False)
    if not engine.zero_optimization():
        optimizer.state.clear()
    engine.update_gate = UpdateGate(optimizer)
    if engine.zero_optimization_stage() == 3:
        _leave_forwards_untraced(engine)
    return engine


def _leave_forwards_untraced(engine: Any) -> None:
    """Until the first training forward, keep ZeRO-3 from learning the order of modules.

    It traces its first passes, and decides from the trace for good when a parameter is released. Of passes that only go
    forward (the isolation proof, the evaluation before the first step) it would learn that none is needed again, and
    gather each twice in every micro-step of the run: measured, a tenth more time.
    """
    coordinator = engine.optimizer.parameter_offload.get_param_coordinator()

    def after_forward(*_: Any) -> None:
        if torch.is_grad_enabled():
            hook.remove()
        elif not coordinator.is_invalid_trace():
            coordinator._invalidate_trace()

    hook = engine.module.register_forward_hook(after_forward)


def build_eval_engine(model: torch.nn.Module, settings: Dict[str, Any], device: torch.device) -> Any:
    """What only runs forward: parameters sharded under ZeRO-3, else the model itself. No optimizer states."""
    if settings["zero_optimization"]["stage"] < 3:
        return model.to(device)
    kept = ("train_micro_batch_size_per_gpu", "bf16", "steps_per_print", "zero_optimization")
    slim = {key: settings[key] for key in kept}
    engine, *_ = deepspeed.initialize(model=model, config=slim, dist_init_required=False)
    return engine


def backward(engine: Any, loss_share: torch.Tensor, world_size: int) -> None:
    """Accumulate the gradient of ``loss_share``: this micro-batch's part of the step's loss (its sum / the trained
    tokens of the global batch). DeepSpeed averages over ranks and divides by accumulation steps; both are undone, so
    that the gradient is that of the sum of the shares over micro-steps and ranks.
    """
    engine.backward(loss_share * world_size, scale_wrt_gas=False)


def set_lr(engine: Any, lr: float) -> None:
    for group in engine.optimizer.param_groups:
        group["lr"] = lr


class UpdateGate:
    """Leaves AdamW's update out where it is not allowed: weights, moments and step counts stay as they are.

    Every ZeRO stage calls AdamW at the end of its own step, once for each group of parameters, when the norm of the
    reduced gradients is known: the one place where an update can be refused whatever the stage. (A subclass would be
    more usual; DeepSpeed compares the optimizer's type.)
    """

    def __init__(self, optimizer: torch.optim.AdamW) -> None:
        self._optimizer, self._update = optimizer, optimizer.step
        self._allowed: Callable[[], bool] = lambda: True
        self.updated = False
        optimizer.step = self._step  # type: ignore[method-assign]

    def ask(self, allowed: Callable[[], bool]) -> None:
        """Who decides about the next update. It is left out too where DeepSpeed does not come to it."""
        self._allowed, self.updated = allowed, False

    def _step(self, closure: Any = None) -> None:
        self.updated = self._allowed()
        if self.updated:
            self._update()


def step(engine: Any, accept: Callable[[float], bool] = lambda norm: True) -> Tuple[float, bool]:
    """End a micro-step; on the last of an optimizer step, clip and update, if ``accept(gradient norm)`` allows it. All
    ranks must answer alike. Gradients are dropped in any case.

    Returns:
        The gradient norm before clipping, over all parameters (inf where it is not finite, nan before the last
        micro-step), and whether the weights were updated.
    """
    boundary = engine.is_gradient_accumulation_boundary()
    # Without ZeRO and in fp32 DeepSpeed keeps no norm: gradients are whole and already averaged here.
    plain = boundary and not engine.zero_optimization() and not engine.bfloat16_enabled()
    norm = float(torch.nn.utils.get_total_norm([p.grad for p in engine.module.parameters() if p.grad is not None])) \
        if plain else float("nan")  # fmt: skip
    # DeepSpeed hands its norm to the engine only after the update.
    engine.update_gate.ask(lambda: accept(norm if plain else float(engine.optimizer._global_grad_norm)))
    engine.step()
    if boundary and not plain:
        norm = float(engine.get_global_grad_norm())
    if boundary and not math.isfinite(norm):
        norm = math.inf
    return norm, engine.update_gate.updated
