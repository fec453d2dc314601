"""The engine of a run: the model, its optimizer, and DeepSpeed's sharding of both.

Everything that ftdist relies on in DeepSpeed's own engine is in this package.
"""

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Optional

import deepspeed
import torch
from deepspeed.utils import set_z3_leaf_module

from ftdist.config.optim import OptimizerSpec, optimizer_of
from ftdist.config.schema import Compile, Precision, RunConfig
from ftdist.config.zero import ModelState
from ftdist.engine.expert_groups import experts_in_turn, group_experts, part_of
from ftdist.engine.gathered_views import save_no_views
from ftdist.engine.muon import import_muon
from ftdist.engine.no_gradient import NoGradient
from ftdist.engine.optimizers import LR_SCALE, build_optimizer, without_pages
from ftdist.model.compiled import Compiled, compile_layers, outermost_layers
from ftdist.model.fixed import fixed_parameters
from ftdist.model.forward import evaluation_mode
from ftdist.model.vocabulary import whole_shape
from ftdist.plan.activations import recomputes_all
from ftdist.plan.communication import ModelSizes, exchange_bytes, with_sizes


class ForwardEngine:
    """A model that can only run forward: it has no optimizer and no gradients.

    Call it like the model, for instance ``engine(input_ids=ids)``. With ZeRO-3 each call gathers parameters, so every
    rank must make the same calls.
    """

    def __init__(self, run_forward: torch.nn.Module, module: torch.nn.Module) -> None:
        self._run_forward: Any = run_forward
        self.module: Any = module
        """The model itself, as transformers built it."""

    def __call__(self, **inputs: Any) -> Any:
        return self._run_forward(**inputs)

    def evaluation(self) -> AbstractContextManager[None]:
        """Put the model into evaluation mode inside a ``with`` block, and restore its mode afterwards."""
        return evaluation_mode(self.module)

    def destroy(self) -> None:
        """Free what DeepSpeed holds outside the engine, so that another engine can be built in this process."""
        if self._run_forward is not self.module:
            self._run_forward.destroy()


@dataclass(frozen=True)
class StepEnd:
    """The result of ending a micro-step."""

    grad_norm: float
    """Norm of the gradient of all parameters before clipping: inf if it is not finite, nan before the last
    micro-step of an optimizer step."""
    updated: bool
    """Whether the weights were updated."""


class Engine(ForwardEngine):
    """The model in training. It owns the backward pass, the optimizer step, the update gate and the learning rate."""

    def __init__(
        self, wrapped: Any, optimizer: torch.optim.Optimizer, spec: OptimizerSpec, world_size: int,
        compiled: Optional[Compiled] = None,
    ) -> None:  # fmt: skip
        """
        Args:
            wrapped: The DeepSpeed engine.
            optimizer: The PyTorch optimizer that it was given.
        """
        super().__init__(wrapped, wrapped.module)
        self.spec = spec
        """Names of the tensors that the optimizer keeps, once it has made an update."""
        self._wrapped, self._world_size = wrapped, world_size
        self.no_gradient = NoGradient(self.module, wrapped.device)
        """The parameters that have not received a gradient so far. They stay unchanged."""
        self.gate = UpdateGate(optimizer, lambda: self.no_gradient.unchanged(self))
        """Decides about each update."""
        self.optimizer = optimizer
        """PyTorch's optimizer, which updates the master weights."""
        self.compiled = compiled
        """The layers that are compiled; None without ``train.compile=layers``."""
        self._fixed = fixed_parameters(self.module)
        self.updates = 0
        """Number of optimizer updates so far, over all attempts of the run."""

    @property
    def stage(self) -> int:
        """The ZeRO stage, 0 to 3."""
        return int(self._wrapped.zero_optimization_stage())

    @property
    def zero_optimizer(self) -> Any:
        """DeepSpeed's wrapper around the optimizer. It holds the master weights, see ``ftdist.engine.shards``."""
        return self._wrapped.optimizer

    def backward(self, loss_share: torch.Tensor) -> None:
        """Accumulate the gradient of this micro-batch's share of the loss of a step.

        DeepSpeed averages gradients over ranks and divides them by the accumulation steps. Both are undone here, so
        that the accumulated gradient is the gradient of the sum of all shares, over all micro-steps and ranks.

        Args:
            loss_share: Scalar: the loss sum of the micro-batch / the weight of the whole global batch.
        """
        self._wrapped.backward(loss_share * self._world_size, scale_wrt_gas=False)

    def step(self, accept: Callable[[float], bool] = lambda norm: True) -> StepEnd:
        """End a micro-step. At the last one of an optimizer step, clip the gradient and update the weights.

        After the last micro-step the gradients are always cleared, also if the update is refused.

        Args:
            accept: Decides from the gradient norm whether the weights are updated. All ranks must decide the same.
        """
        wrapped = self._wrapped
        boundary = wrapped.is_gradient_accumulation_boundary()
        # Without ZeRO, in fp32, DeepSpeed does not report the norm. The gradients are whole and averaged at this
        # point.
        plain = boundary and not self.stage and not wrapped.bfloat16_enabled()
        norm = math.nan
        if boundary:
            self.no_gradient.agree()

        def decide() -> bool:
            nonlocal norm
            if math.isnan(norm):  # read once, although DeepSpeed may update one group of parameters at a time
                norm = _number(self.zero_optimizer._global_grad_norm)
            return accept(norm)

        if plain:
            gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
            norm = _number(torch.nn.utils.get_total_norm(gradients))
        # DeepSpeed's engine stores the norm only after the update, which is too late for the decision.
        self.gate.ask(decide)
        wrapped.step()
        if boundary and math.isnan(norm):  # DeepSpeed did not reach the update
            norm = _number(wrapped.get_global_grad_norm())
        self.updates += boundary and self.gate.updated
        return StepEnd(norm, self.gate.updated)

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of the next update."""
        for group in self.zero_optimizer.param_groups:
            group["lr"] = lr * group[LR_SCALE]

    def exchange_bytes(self, precision: Precision) -> int:
        """Return the bytes that DeepSpeed has on this rank for communication."""
        zero = self._wrapped._config.zero_config.model_dump(by_alias=True)
        return exchange_bytes(zero, model_sizes(self.module), precision)

    def trained_shapes(self) -> Dict[str, List[int]]:
        """Return the whole shape of each parameter that is trained, by name."""
        parts = [part_of(name, p) for name, p in self.module.named_parameters() if p.requires_grad]
        return {part.name: list(part.shape) for part in parts}

    def buffers(self) -> Dict[str, torch.Tensor]:
        """Return what checkpoints hold besides the trained parameters, by name.

        These are the buffers that the model saves with its weights, and copies of the parameters that the model never
        trains (``ftdist.model.fixed``).
        """
        saved = self.module.state_dict().keys()
        return {name: tensor for name, tensor in self.module.named_buffers() if name in saved} | self._fixed


class UpdateGate:
    """Skips an update that is refused: weights, moments and step counts stay as they are.

    At every ZeRO stage DeepSpeed calls the optimizer at the end of its own step, at least once,
    when the norm of the reduced gradients is known. This call is the only place where an update can be refused. The
    gate replaces the optimizer's ``step`` method. A subclass would not work, because DeepSpeed checks the optimizer's
    type.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, around: Callable[[], AbstractContextManager[None]]) -> None:
        """
        Args:
            around: Makes the context in which an update is made.
        """
        self._update, self._around = optimizer.step, around
        self._accepted: Callable[[], bool] = lambda: True
        self.before_update: Callable[[], None] = lambda: None
        """Called before each update that is made, when the gradients are complete."""
        self.updated = False
        """Whether the last step updated the weights. False if DeepSpeed did not reach the update."""
        optimizer.step = self._step  # type: ignore[method-assign, assignment]

    def ask(self, accepted: Callable[[], bool]) -> None:
        """Set the function that decides whether the next update is made."""
        self._accepted, self.updated = accepted, False

    def _step(self, closure: Any = None) -> None:
        self.updated = self._accepted()
        if self.updated:
            self.before_update()
            with self._around():
                self._update()


def _number(norm: Any) -> float:
    """Return a gradient norm as a number: inf if it is not finite."""
    value = float(norm)
    return value if math.isfinite(value) else math.inf


def build_engine(config: RunConfig, model: torch.nn.Module, settings: Dict[str, Any], world_size: int) -> Engine:
    """Build the engine of a run. The learning rate is 0 until the training loop sets it; there is no scheduler here.

    In bf16 without ZeRO, DeepSpeed 0.19 takes an optimizer step when the engine is built, to allocate the optimizer
    states. This step would apply weight decay once and keep Adam's bias correction one step ahead during the whole run.
    With a learning rate of 0 it changes no weight, and its states are dropped.

    Args:
        settings: What DeepSpeed is given (``deepspeed.json``).
    """
    import_muon()
    if config.zero.expert_groups > 1:
        group_experts(model, config.zero.expert_groups)
    sharded = ModelState.parameters.is_sharded(config.zero.stage)
    compiled = compile_layers(model, sharded) if config.train.compile is Compile.layers else None
    # The weights of a leaf are gathered together before any of its code runs.
    for leaf in compiled.layers if compiled else experts_in_turn(model):
        set_z3_leaf_module(leaf, True)
        if sharded and any(p.requires_grad for p in leaf.parameters()):
            leaf.register_forward_pre_hook(_with_input_gradient, with_kwargs=True)
    optimizer = build_optimizer(config.optim, model)
    settings = with_sizes(settings, model_sizes(model))
    with without_pages(optimizer):
        wrapped, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings, dist_init_required=False)
    engine = Engine(wrapped, optimizer, optimizer_of(config.optim), world_size, compiled)
    if not engine.stage:
        optimizer.state.clear()
    if sharded:
        _leave_forwards_untraced(engine)
        if not recomputes_all(config.train):  # a recomputed layer saves no views in the forward
            save_no_views(engine.module)
    return engine


def _with_input_gradient(layer: torch.nn.Module, args: Any, kwargs: Dict[str, Any]) -> Any:
    """Make the first input of a layer need a gradient, also where everything before the layer is frozen.

    DeepSpeed reduces the gradients of a layer that is gathered as a whole in a backward hook of the layer. PyTorch
    calls such a hook before the gradients exist if no input of the layer needs one.
    """
    if not args or args[0].requires_grad or not torch.is_grad_enabled():
        return None
    return (args[0].detach().requires_grad_(), *args[1:]), kwargs


def build_forward_engine(
    model: torch.nn.Module, settings: Dict[str, Any], device: torch.device, expert_groups: int = 1
) -> ForwardEngine:
    """Build an engine for evaluation only. With ZeRO-3 its parameters are sharded; otherwise it is the plain model.

    Args:
        expert_groups: Number of groups into which the experts of each layer are divided with ZeRO-3.
    """
    if not ModelState.parameters.is_sharded(settings["zero_optimization"]["stage"]):
        model = model.to(device)
        return ForwardEngine(model, model)
    if expert_groups > 1:
        group_experts(model, expert_groups)
    kept = ("train_micro_batch_size_per_gpu", "bf16", "steps_per_print", "zero_optimization")
    slim = with_sizes({key: settings[key] for key in kept}, model_sizes(model))
    import_muon()
    for leaf in experts_in_turn(model):
        set_z3_leaf_module(leaf, True)
    wrapped, *_ = deepspeed.initialize(model=model, config=slim, dist_init_required=False)
    return ForwardEngine(wrapped, wrapped.module)


def model_sizes(model: torch.nn.Module) -> ModelSizes:
    """Return the sizes on which those of DeepSpeed's communication depend."""

    def count(module: torch.nn.Module, trained_only: bool = False) -> int:
        return sum(whole_shape(p).numel() for p in module.parameters() if p.requires_grad or not trained_only)

    whole = count(model)
    return ModelSizes(whole, count(model, trained_only=True), max(map(count, outermost_layers(model)), default=whole))


def _leave_forwards_untraced(engine: Engine) -> None:
    """Keep ZeRO-3 from learning the order of modules before the first training forward.

    ZeRO-3 traces its first passes and decides from the trace, for the whole run, when a parameter is released. From
    passes without a backward pass (the isolation proof, the evaluation before the first step) it would learn that no
    parameter is needed again. It would then gather each parameter twice in every micro-step of the run. This was
    measured to take 10 % more time.
    """
    coordinator = engine.zero_optimizer.parameter_offload.get_param_coordinator()

    def after_forward(*_: Any) -> None:
        if torch.is_grad_enabled():
            hook.remove()
        elif not coordinator.is_invalid_trace():
            coordinator._invalidate_trace()

    hook = engine.module.register_forward_hook(after_forward)
