"""The section ``optim`` of the run config: the optimizer and the learning rate."""

from dataclasses import dataclass
from enum import Enum
from typing import Dict, NamedTuple, Optional, Tuple

from ftdist.base.errors import ConfigError
from ftdist.config.method import ADAPTERS, METHOD_FACTS, MethodConfig, MethodKind


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
    """The optimizer (docs/optimizers.md). ``adamw``: Adam with decoupled weight decay. ``adamw_8bit``: its states in 8
    bits (bitsandbytes, ``pip install ftdist[quant]``). ``lion``: the sign of a momentum, half of AdamW's states.
    ``sgd``: gradient descent with momentum. ``adafactor``: one number for each row and column of a matrix, nearly no
    states; zero.stage=0. ``muon``: orthogonal updates of matrices, AdamW for the rest; experimental; zero.stage=0."""
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
    weight_decay: float = 0.0
    """Weight decay of matrices. Norms and biases have none. It is decoupled from the gradient, except in ``sgd``, where
    it is added to the gradient."""
    lora_plus_ratio: Optional[float] = None
    """``lora``, ``qlora``: learning rate of the B matrices / that of all other parameters, LoRA+ (Hayou 2024,
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


_ADAMW = {"beta1": 0.9, "beta2": 0.95, "eps": 1e-8}


class OptimizerFacts(NamedTuple):
    """What is known of an optimizer, besides the states that it keeps (``ftdist.plan.optimizers``)."""

    usual: Dict[str, float]
    """The settings that it reads, with the values that they have if they are null."""
    rates: Tuple[float, float]
    """Lowest and highest usual learning rate, as a multiple of AdamW's (``MethodFacts.usual_rates``)."""
    whole: str = ""
    """Why it needs whole matrices. Empty: it does not."""


OPTIMIZER_FACTS: Dict[OptimizerKind, OptimizerFacts] = {
    OptimizerKind.adamw: OptimizerFacts(_ADAMW, (1, 1)),
    OptimizerKind.adamw_8bit: OptimizerFacts(_ADAMW, (1, 1)),
    # The update is relative to the size of the weights, which is a few hundredths.
    OptimizerKind.adafactor: OptimizerFacts(
        {}, (10, 100), "Adafactor keeps one number for each row and column of a matrix"
    ),
    # The update has the size 1 in every element; that of AdamW is smaller.
    OptimizerKind.lion: OptimizerFacts({"beta1": 0.9, "beta2": 0.99}, (0.1, 0.3)),
    # The update is scaled to the size of AdamW's.
    OptimizerKind.muon: OptimizerFacts(
        {"momentum": 0.95, **_ADAMW}, (1, 1), "Muon makes the update of a whole matrix orthogonal"
    ),
    # The update has the size of the gradient.
    OptimizerKind.sgd: OptimizerFacts({"momentum": 0.9}, (100, 10_000)),
}


def values_of(optim: OptimConfig) -> Dict[str, float]:
    """Return the settings that the optimizer reads, by name. Those that are null have the optimizer's usual value."""
    given = {name: (getattr(optim, name), usual) for name, usual in OPTIMIZER_FACTS[optim.optimizer].usual.items()}
    return {name: usual if value is None else value for name, (value, usual) in given.items()}


def check_optimizer(optim: OptimConfig, method: MethodConfig, stage: int) -> None:
    """Check that all settings are read, and that the optimizer gives its own numbers at the ZeRO stage.

    Raises:
        ConfigError: A setting is set that the optimizer or the method does not read, or the optimizer needs whole
        matrices and the stage cuts them.
    """
    chosen, facts = optim.optimizer, OPTIMIZER_FACTS[optim.optimizer]
    if facts.whole and stage > 0:
        raise ConfigError(f"optim.optimizer={chosen.name} with zero.stage={stage}: {facts.whole}, and ZeRO stages 1 "
                          "to 3 cut all parameters into flat parts, one for each rank",
                          f"zero.stage=0 with optim.optimizer={chosen.name}",
                          "zero.stage=0, or optim.optimizer=lion, which keeps half of AdamW's states")  # fmt: skip
    for name in dict.fromkeys(name for other in OPTIMIZER_FACTS.values() for name in other.usual):
        if getattr(optim, name) is not None and name not in facts.usual:
            readers = [kind.name for kind, other in OPTIMIZER_FACTS.items() if name in other.usual]
            raise ConfigError(f"optim.{name} is set, but optim.optimizer={chosen.name} does not read it",
                              f"optim.{name} only with optim.optimizer={' or '.join(readers)}",
                              f"optim.{name}=null")  # fmt: skip
    if optim.lora_plus_ratio is not None and method.kind not in ADAPTERS:
        raise ConfigError(f"optim.lora_plus_ratio is set, but method={method.kind.name} has no B matrices",
                          "optim.lora_plus_ratio only with adapters", "optim.lora_plus_ratio=null")  # fmt: skip


def rate_warning(method: MethodKind, optim: OptimConfig) -> str:
    """Return a warning if the peak learning rate is far from what is usual for the method and the optimizer. Otherwise
    an empty text."""
    rates, factors = METHOD_FACTS[method].usual_rates, OPTIMIZER_FACTS[optim.optimizer].rates
    low, high = (rate * factor for rate, factor in zip(rates, factors, strict=True))
    lr, ratio = optim.lr, optim.lora_plus_ratio or 1.0
    with_optimizer = "" if optim.optimizer is OptimizerKind.adamw else f" with optim.optimizer={optim.optimizer.name}"
    usual = f"for method={method.name}{with_optimizer}; usual values are {low:g} to {high:g}"
    if lr and not low <= lr <= high:
        return f"optim.lr={lr:g} is {'low' if lr < low else 'high'} {usual}"
    if lr and not low <= lr * ratio <= high:
        return f"optim.lr × optim.lora_plus_ratio = {lr * ratio:g} is {'low' if ratio < 1 else 'high'} {usual}"
    return ""
