"""The section ``optim`` of the run config: the optimizer and the learning rate."""

from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Dict, Optional, Tuple

from ftdist.base.errors import ConfigError
from ftdist.config.limits import check_range
from ftdist.config.method import METHOD_FACTS, MethodConfig, MethodKind
from ftdist.config.zero import ModelState


class Schedule(Enum):
    constant = "constant"
    linear = "linear"
    cosine = "cosine"
    wsd = "wsd"


class OptimizerKind(Enum):
    adamw = "adamw"
    adamw_8bit = "adamw_8bit"
    adafactor = "adafactor"
    lion = "lion"
    muon = "muon"
    sgd = "sgd"


@dataclass
class OptimConfig:
    optimizer: OptimizerKind = OptimizerKind.adamw
    """The optimizer (docs/optimizers.md). ``adamw``: Adam with decoupled weight decay. ``adamw_8bit``: AdamW with 8-bit
    states (bitsandbytes, ``pip install ftdist[quant]``). ``lion``: the update is the sign of a momentum; its states
    take half the memory of AdamW's states. ``sgd``: gradient descent with momentum. ``adafactor``: keeps one number for
    each row and column of a matrix, so its states are small; needs zero.stage=0. ``muon``: orthogonal updates of
    matrices, AdamW for the rest; experimental; needs zero.stage=0."""
    lr: float = 1.0e-5
    """Peak learning rate."""
    beta1: Optional[float] = None
    """``adamw``, ``adamw_8bit``, ``lion``, ``muon`` (its AdamW): decay rate of the first moment. null: 0.9."""
    beta2: Optional[float] = None
    """``adamw``, ``adamw_8bit``, ``muon``: decay rate of the second moment; null: 0.95. ``lion``: decay rate of the
    momentum that is kept; null: 0.99."""
    eps: Optional[float] = None
    """``adamw``, ``adamw_8bit``, ``muon``: constant that is added to the denominator of AdamW's update. null: 1e-8."""
    momentum: Optional[float] = None
    """``sgd``: decay rate of the momentum; 0: none, and no state. null: 0.9. ``muon``: the same for matrices; null:
    0.95."""
    paged: bool = False
    """``adamw``, ``adamw_8bit``, ``lion``: keep the states in memory that a GPU moves to host memory while it is full
    (the paged optimizers of bitsandbytes). CUDA only."""
    weight_decay: float = 0.0
    """Weight decay of matrices. Norms and biases have none. It is decoupled from the gradient, except in ``sgd``, where
    it is added to the gradient."""
    lora_plus_ratio: Optional[float] = None
    """``lora``, ``qlora``: learning rate of the B matrices divided by that of all other parameters, LoRA+ (Hayou 2024,
    https://arxiv.org/abs/2402.12354, which uses 16). null: 1."""
    max_grad_norm: float = 1.0
    """Maximum global norm of the gradient; a larger gradient is scaled down to it. 0: no clipping."""
    schedule: Schedule = Schedule.cosine
    """Learning rate after the warm-up. ``constant``: stays at lr. ``linear``, ``cosine``: decreases to
    ``min_lr_ratio × lr`` at the end. ``wsd`` (warmup-stable-decay): constant, then linear over the last decay_steps."""
    warmup_steps: int = 0
    """Optimizer steps of linear warm-up. The learning rate is lr / warmup_steps in the first of them, and lr in the
    last."""
    warmup_ratio: Optional[float] = None
    """Warm-up as a share (0 to 1) of the run's optimizer steps, rounded up. Set it instead of warmup_steps. It is
    replaced by warmup_steps when the number of steps is known."""
    shorten_warmup: bool = False
    """If the warm-up does not fit into the run, shorten it to at most a tenth of the run. false: such a run is refused.
    It is set to true when the warm-up comes from a file of this group, such as ``optim=cosine``, or from an experiment
    whose number of steps the command line changes."""
    decay_steps: int = 0
    """Optimizer steps of the final decay of ``wsd``."""
    min_lr_ratio: float = 0.0
    """Learning rate at the end, as a share of lr."""


FP32_BYTES = 4
"""Bytes of a number in fp32."""
BOTH = ("state1", "state2")
"""Names that bitsandbytes gives to the states of AdamW. Lion has the first one."""
_ADAMW = {"beta1": 0.9, "beta2": 0.95, "eps": 1e-8}


@dataclass(frozen=True)
class OptimizerSpec:
    """Facts about an optimizer. It may keep only some of these states for a given parameter."""

    states: Tuple[str, ...]
    """Names of the states that have the parameter's shape and can be cut like the parameter."""
    others: Tuple[str, ...] = ()
    """Names of the states that have another shape."""
    at_most: Optional[float] = None
    """Maximum bytes of all states for each element of a trained parameter. None: those of ``states`` in fp32."""
    usual: Dict[str, float] = field(default_factory=dict)
    """The settings that the optimizer reads, each with the value that null stands for."""
    rates: Tuple[float, float] = (1, 1)
    """Lowest and highest usual learning rate, as a multiple of AdamW's (``MethodFacts.usual_rates``)."""
    whole: str = ""
    """Why the optimizer needs whole matrices. Empty: it does not need them."""
    paged_states: Tuple[str, ...] = ()
    """Names of the states with the parameter's shape that its paged variant keeps. Empty: it has no paged variant."""
    paged: bool = False
    """Whether its states are paged: counted as host memory, where a GPU moves them when it is full."""

    @property
    def bytes_per_parameter(self) -> float:
        """Bytes of the states for each element of a trained parameter, without the fp32 master weight."""
        return FP32_BYTES * len(self.states) if self.at_most is None else self.at_most


OPTIMIZERS: Dict[OptimizerKind, OptimizerSpec] = {
    OptimizerKind.adamw: OptimizerSpec(("exp_avg", "exp_avg_sq"), usual=_ADAMW, paged_states=BOTH),
    # A byte for each element of both moments, and 4 for each block of 256. Tensors with fewer than 4096 elements keep
    # fp32 states.
    OptimizerKind.adamw_8bit: OptimizerSpec(BOTH, ("absmax1", "absmax2"), 2.1, _ADAMW, paged_states=BOTH),
    # 4 bytes for each row and each column of a matrix. An adapter of rank 16 has matrices with only 16 rows or columns:
    # less than 0.3 bytes for each element. The matrices of a whole model take less than 0.01. Norms and biases have a
    # variance for each element. The update is multiplied by the size of the weights, which is a few hundredths, so the
    # usual learning rates are higher.
    OptimizerKind.adafactor: OptimizerSpec(
        ("variance",), ("row_var", "col_var"), 0.3, rates=(10, 100),
        whole="Adafactor keeps one number for each row and column of a matrix",
    ),
    # The update has the size 1 in every element; that of AdamW is smaller.
    OptimizerKind.lion: OptimizerSpec(
        ("exp_avg",), usual={"beta1": 0.9, "beta2": 0.99}, rates=(0.1, 0.3), paged_states=BOTH[:1],
    ),
    # 4 bytes for the elements of matrices; 8 for embeddings, the head, norms and biases. The update is scaled to the
    # size of AdamW's.
    OptimizerKind.muon: OptimizerSpec(
        ("momentum_buffer", "exp_avg", "exp_avg_sq"), (), 8.0, {"momentum": 0.95, **_ADAMW},
        whole="Muon makes the update of a whole matrix orthogonal",
    ),
    # The update has the size of the gradient.
    OptimizerKind.sgd: OptimizerSpec(("momentum_buffer",), usual={"momentum": 0.9}, rates=(100, 10_000)),
}  # fmt: skip
BLOCKS_CANNOT_BE_CUT = ("The 8-bit states of adamw_8bit have one scale for each block of a rank's part, so they "
                        "cannot be divided among the ranks in another way")  # fmt: skip
"""Why a run with 8-bit states can be resumed only on the same number of ranks and at the same ZeRO stage."""


def optimizer_of(optim: OptimConfig) -> OptimizerSpec:
    """Return the facts about the optimizer of a run."""
    spec = OPTIMIZERS[optim.optimizer]
    if optim.optimizer is OptimizerKind.sgd and not values_of(optim)["momentum"]:
        return replace(spec, states=())
    if optim.paged:
        return replace(spec, states=spec.paged_states, paged=True)
    return spec


def values_of(optim: OptimConfig) -> Dict[str, float]:
    """Return the settings that the optimizer reads, by name. Those that are null have the optimizer's usual value."""
    given = {name: (getattr(optim, name), usual) for name, usual in OPTIMIZERS[optim.optimizer].usual.items()}
    return {name: usual if value is None else value for name, (value, usual) in given.items()}


def check_optimizer(optim: OptimConfig, method: MethodConfig, stage: int) -> None:
    """Check that the values are within their limits, that the optimizer reads all settings that are set, and that it
    works at this ZeRO stage.

    Args:
        method: section ``method``. LoRA+ needs a method with adapters.
        stage: ``zero.stage``.

    Raises:
        ConfigError: A value is wrong, a setting is set that the optimizer or the method does not read, or the optimizer
        needs whole matrices and the stage cuts them.
    """
    _check_values(optim)
    chosen, spec = optim.optimizer, OPTIMIZERS[optim.optimizer]
    if spec.whole and ModelState.optimizer_states.is_sharded(stage):
        raise ConfigError(f"optim.optimizer={chosen.name} with zero.stage={stage}: {spec.whole}, and ZeRO stages 1 "
                          "to 3 cut all parameters into flat parts, one for each rank",
                          f"zero.stage=0 with optim.optimizer={chosen.name}",
                          "zero.stage=0, or optim.optimizer=lion, which keeps half of AdamW's states")  # fmt: skip
    for name in dict.fromkeys(name for other in OPTIMIZERS.values() for name in other.usual):
        if getattr(optim, name) is not None and name not in spec.usual:
            readers = [kind.name for kind, other in OPTIMIZERS.items() if name in other.usual]
            raise ConfigError(f"optim.{name} is set, but optim.optimizer={chosen.name} does not read it",
                              f"optim.{name} only with optim.optimizer={' or '.join(readers)}",
                              f"optim.{name}=null")  # fmt: skip
    if optim.paged and not spec.paged_states:
        with_pages = [kind.name for kind, other in OPTIMIZERS.items() if other.paged_states]
        raise ConfigError(f"optim.paged=true, but optim.optimizer={chosen.name} has no paged variant",
                          f"optim.paged only with optim.optimizer={' or '.join(with_pages)}",
                          "optim.paged=false")  # fmt: skip
    if optim.lora_plus_ratio is not None and not method.facts.adapters:
        raise ConfigError(f"optim.lora_plus_ratio is set, but method={method.kind.name} has no B matrices",
                          "optim.lora_plus_ratio only with adapters", "optim.lora_plus_ratio=null")  # fmt: skip


def _check_values(optim: OptimConfig) -> None:
    for name, low, high in (
        ("lr", 0.0, 1e3), ("beta1", 0.0, 0.9999999), ("beta2", 0.0, 0.9999999), ("eps", 0.0, 1.0),
        ("momentum", 0.0, 0.9999999), ("lora_plus_ratio", 1e-3, 1e3),
        ("weight_decay", 0.0, 1e3), ("max_grad_norm", 0.0, float("inf")), ("warmup_steps", 0, float("inf")),
        ("warmup_ratio", 0.0, 1.0), ("decay_steps", 0, float("inf")), ("min_lr_ratio", 0.0, 1.0),
    ):  # fmt: skip
        check_range(f"optim.{name}", getattr(optim, name), low, high)
    if optim.warmup_ratio is not None and optim.warmup_steps:
        raise ConfigError(f"optim.warmup_ratio={optim.warmup_ratio:g} and optim.warmup_steps={optim.warmup_steps} "
                          "are both set", "at most one of them",
                          "optim.warmup_steps=0, or optim.warmup_ratio=null")  # fmt: skip
    if optim.schedule is Schedule.wsd and not optim.decay_steps:
        raise ConfigError("optim.schedule=wsd needs optim.decay_steps > 0, but optim.decay_steps=0",
                          "at least 1 decay step", "set optim.decay_steps, e.g. to a tenth of the run")  # fmt: skip
    if optim.schedule is not Schedule.wsd and optim.decay_steps:
        raise ConfigError(f"optim.decay_steps={optim.decay_steps} has no effect with "
                          f"optim.schedule={optim.schedule.name}", "decay steps only with optim.schedule=wsd",
                          "optim.schedule=wsd, or optim.decay_steps=0")  # fmt: skip


def rate_warning(method: MethodKind, optim: OptimConfig) -> str:
    """Return a warning if the peak learning rate is far from what is usual for the method and the optimizer. Otherwise
    an empty text."""
    rates, factors = METHOD_FACTS[method].usual_rates, OPTIMIZERS[optim.optimizer].rates
    low, high = (rate * factor for rate, factor in zip(rates, factors, strict=True))
    lr, ratio = optim.lr, optim.lora_plus_ratio or 1.0
    with_optimizer = "" if optim.optimizer is OptimizerKind.adamw else f" with optim.optimizer={optim.optimizer.name}"
    usual = f"for method={method.name}{with_optimizer}; usual values are {low:g} to {high:g}"
    if lr and not low <= lr <= high:
        return f"optim.lr={lr:g} is {'low' if lr < low else 'high'} {usual}"
    if lr and not low <= lr * ratio <= high:
        return f"optim.lr × optim.lora_plus_ratio = {lr * ratio:g} is {'low' if ratio < 1 else 'high'} {usual}"
    return ""
