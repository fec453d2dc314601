"""The section ``method`` of the run config: which parameters are trained. ``schema.py`` has the other sections."""

from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Dict, List, NamedTuple, Optional, Tuple

from ftdist.base.errors import ConfigError
from ftdist.config.zero import ModelState


class MethodKind(Enum):
    full = "full"
    lora = "lora"
    qlora = "qlora"
    partial = "partial"


@dataclass
class MethodConfig:
    kind: MethodKind = MethodKind.full
    """Which parameters are trained. ``full``: all of them. ``lora``: small adapters beside the matrices of the model
    (Hu 2021, https://arxiv.org/abs/2106.09685). ``qlora``: the same, beside frozen matrices in 4 bits (Dettmers 2023,
    https://arxiv.org/abs/2305.14314); it reads all settings of ``lora``. ``partial``: those that ``trainable`` and
    ``last_layers`` name."""
    r: int = 16
    """``lora``: rank of the adapters."""
    lora_alpha: float = 32.0
    """``lora``: the output of an adapter is multiplied by lora_alpha / r."""
    lora_dropout: float = 0.0
    """``lora``: share (0 to 1) of the inputs of each adapter that is set to 0 in training."""
    target_modules: List[str] = field(default_factory=lambda: ["all-linear"])
    """``lora``: modules with an adapter, as names (``q_proj``), ends of names (``self_attn.q_proj``) or patterns of
    them (``mlp.*``). ``all-linear``: all linear layers except the output head."""
    layers_to_transform: Optional[List[int]] = None
    """``lora``: numbers of the layers with adapters; -1 is the last layer. null: all layers."""
    use_rslora: bool = False
    """``lora``: multiply by lora_alpha / √r instead, for large ranks (Kalajdzievski 2023,
    https://arxiv.org/abs/2312.03732)."""
    use_dora: bool = False
    """``lora``: also train the magnitude of each row of the adapted matrices (DoRA, Liu 2024,
    https://arxiv.org/abs/2402.09353)."""
    modules_to_save: List[str] = field(default_factory=list)
    """``lora``: modules that are trained in full and saved with the adapter, for instance ``[embed_tokens,
    lm_head]``."""
    init_from: Optional[str] = None
    """``lora``: continue this adapter as a new run: a folder in PEFT's format, or a run whose export is one. The new
    run uses the settings of the adapter, except lora_dropout. The optimizer starts with new states."""
    trainable: List[str] = field(default_factory=list)
    """``partial``: parameters that are trained: ``embeddings``, ``head``, ``norms``, or ends of parameter names,
    also as patterns (``mlp.*``)."""
    last_layers: int = 0
    """``partial``: also train all parameters of this many last layers."""

    @property
    def facts(self) -> "MethodFacts":
        """The facts about the chosen method."""
        return METHOD_FACTS[self.kind]


_LORA = ("r", "lora_alpha", "lora_dropout", "target_modules", "layers_to_transform", "use_rslora", "use_dora",
         "modules_to_save", "init_from")  # fmt: skip
_LORA_RATES, _RATES = (3e-5, 5e-3), (1e-7, 1e-3)  # adapters need about ten times the rate of full fine-tuning


class MethodFacts(NamedTuple):
    """Facts about a method."""

    reads: Tuple[str, ...]
    """The settings of the section that the method reads."""
    usual_rates: Tuple[float, float]
    """Lowest and highest usual peak learning rate of AdamW."""
    whole: bool = False
    """Whether the method trains all parameters of the model. Otherwise a checkpoint fits only the base model of its
    run."""
    adapters: bool = False
    """Whether the method trains adapters beside a frozen model. The export is then an adapter, or a merged model."""
    quantized: bool = False
    """Whether the frozen matrices are stored in 4 bits."""


METHOD_FACTS: Dict[MethodKind, MethodFacts] = {
    MethodKind.full: MethodFacts((), _RATES, whole=True),
    MethodKind.lora: MethodFacts(_LORA, _LORA_RATES, adapters=True),
    MethodKind.qlora: MethodFacts(_LORA, _LORA_RATES, adapters=True, quantized=True),
    MethodKind.partial: MethodFacts(("trainable", "last_layers"), _RATES),
}


def check_method(method: MethodConfig, stage: int) -> None:
    """Check the values of the section.

    Args:
        stage: ``zero.stage``.

    Raises:
        ConfigError: A value is out of range, a setting is set that the chosen method does not read, or the method does
        not work at this stage.
    """
    default = MethodConfig()
    for name in (entry.name for entry in fields(method) if entry.name != "kind"):
        if getattr(method, name) != getattr(default, name) and name not in method.facts.reads:
            reader = next(kind for kind, facts in METHOD_FACTS.items() if name in facts.reads)
            raise ConfigError(f"method.{name} is set, but method={method.kind.name} does not read it",
                              f"method.{name} only with method={reader.name}", f"method={reader.name}")  # fmt: skip
    if method.facts.adapters:
        _check_lora(method)
    if method.facts.quantized and method.use_dora and ModelState.parameters.is_sharded(stage):
        # peft.utils.integrations.dequantize_module_weight assigns a new weight on CPU, which is not sharded.
        raise ConfigError("method=qlora with method.use_dora=true does not work at zero.stage=3: for DoRA, PEFT reads "
                          "the 4-bit matrices while their layers do not run. On CPU it also replaces them by matrices "
                          "that are not sharded",
                          "zero.stage=0 to 2, or DoRA on a 16-bit base", "zero.stage=2, or method=lora")  # fmt: skip
    if method.kind is MethodKind.partial and not method.trainable and not method.last_layers:
        raise ConfigError("method=partial names no parameters: nothing would be trained",
                          "method.last_layers or method.trainable", "method.last_layers=2")  # fmt: skip
    if method.last_layers < 0:
        raise ConfigError(f"method.last_layers={method.last_layers}", "0 or more", "method.last_layers=2")


def _check_lora(method: MethodConfig) -> None:
    if method.r < 1:
        raise ConfigError(f"method.r={method.r}", "at least 1", "method.r=16")
    if not method.lora_alpha > 0:
        raise ConfigError(f"method.lora_alpha={method.lora_alpha:g}: the adapters would have no effect", "more than 0",
                          f"method.lora_alpha={2 * method.r}")  # fmt: skip
    if not 0 <= method.lora_dropout < 1:
        raise ConfigError(f"method.lora_dropout={method.lora_dropout:g}", "at least 0 and less than 1",
                          "method.lora_dropout=0.05")  # fmt: skip
    if not method.target_modules:
        raise ConfigError("method.target_modules is empty", "at least one name or pattern",
                          "method.target_modules=[all-linear]")  # fmt: skip
    if method.layers_to_transform is not None and not method.layers_to_transform:
        raise ConfigError("method.layers_to_transform is empty: no layer would have an adapter",
                          "numbers of layers, or null for all", "method.layers_to_transform=null")  # fmt: skip
