"""The memory that the model states of one rank take: parameters, gradients and optimizer states.

Activations, communication buffers and DeepSpeed's staging buffers for offload are not counted in them. Three more
functions return memory that is needed for a time in addition: for the scores of eager attention
(``eager_attention_bytes``), for the module that ZeRO-3 gathers (``gathered_bytes``), and for the weights while a model
is loaded (``loading_bytes``).
The formula for users is in docs/step.md, "What ZeRO shards".
"""

from dataclasses import dataclass, fields, replace
from typing import Dict, List, Optional, Tuple

from ftdist.config.optim import FP32_BYTES, OptimizerKind, OptimizerSpec, optimizer_of
from ftdist.config.schema import Offload, Precision, RunConfig, ZeroConfig
from ftdist.config.zero import ModelState
from ftdist.plan.layout import Layout

NF4_BYTES, NF4_BLOCK = 0.5, 64
"""Bytes of one number in 4 bits, and how many numbers share a scale."""
NF4_CONSTANTS = 1 / NF4_BLOCK + FP32_BYTES / (256 * NF4_BLOCK)
"""Bytes of the scales for one number, after double quantization: 8 bits a block, and 32 bits for 256 blocks."""
BYTES: Dict[Precision, int] = {Precision.bf16: 2, Precision.fp32: FP32_BYTES}
"""Bytes of one number in each precision: of a weight, of a gradient, of an activation."""


@dataclass(frozen=True)
class States:
    """Bytes, by kind of tensor."""

    parameters: float = 0.0
    gradients: float = 0.0
    optimizer_states: float = 0.0
    """fp32 master weights included, where they are tensors of their own."""

    @property
    def total(self) -> float:
        return self.parameters + self.gradients + self.optimizer_states

    def __add__(self, other: "States") -> "States":
        return States(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))


@dataclass(frozen=True)
class RankMemory:
    """Bytes that one rank holds in each kind of memory."""

    device: States
    """On the GPU; on a machine without one, in host memory."""
    host: States
    """In host memory, because of ``zero.offload_optimizer``, ``zero.offload_param`` or ``optim.paged``."""


def rank_memory(
    parameters: int, trained: int, precision: Precision, zero: ZeroConfig, layout: Layout, optimizer: OptimizerSpec,
    quantized: int = 0,
) -> RankMemory:  # fmt: skip
    """Return the bytes of the model states of one rank when gradients are complete: at the end of a backward pass.

    Args:
        parameters: parameters of the model.
        trained: trained parameters, which have gradients and optimizer states.
        quantized: those of the parameters that have 4 bits.
    """

    def on_rank(numbers: int, bytes_each: float, kind: ModelState) -> float:
        return numbers * bytes_each / (layout.data if kind.is_sharded(zero.stage) else 1)

    width = BYTES[precision]
    weights = States(parameters=on_rank(parameters - quantized, width, ModelState.parameters)
                     + on_rank(quantized, NF4_BYTES, ModelState.parameters))  # fmt: skip
    constants = States(parameters=quantized * NF4_CONSTANTS)  # they are never sharded
    gradients = States(gradients=on_rank(trained, width, ModelState.gradients))
    optimizer_bytes = _optimizer_bytes(precision, zero.stage, optimizer)
    states = States(optimizer_states=on_rank(trained, optimizer_bytes, ModelState.optimizer_states))
    pages = on_rank(trained, optimizer.bytes_per_parameter, ModelState.optimizer_states) if optimizer.paged else 0.0
    device, host = weights + constants + gradients + states, States(optimizer_states=pages)
    device = replace(device, optimizer_states=device.optimizer_states - pages)
    if zero.offload_optimizer is not Offload.none:
        # The optimizer on the host gets the fp32 gradients of this rank's part. At stage 1 the whole gradients are
        # gathered on the device first.
        device = weights + constants + (States() if ModelState.gradients.is_sharded(zero.stage) else gradients)
        host = states + States(gradients=on_rank(trained, FP32_BYTES, ModelState.optimizer_states))
    if zero.offload_param is not Offload.none:
        device, host = replace(device, parameters=constants.parameters), host + weights
    return RankMemory(device, host)


def has_master_copy(precision: Precision, stage: int) -> bool:
    """Return whether the fp32 master weights are a copy of the weights.

    In fp32 without ZeRO the weight is its own master. The ZeRO stages 1 to 3 keep a copy in any precision.
    """
    return precision is not Precision.fp32 or ModelState.optimizer_states.is_sharded(stage)


def _optimizer_bytes(precision: Precision, stage: int, optimizer: OptimizerSpec) -> float:
    """Return the bytes for one trained parameter: the states, and the fp32 master weight where it is a copy."""
    return optimizer.bytes_per_parameter + (FP32_BYTES if has_master_copy(precision, stage) else 0)


def memory_of(
    config: RunConfig, parameters: int, layout: Layout, trained: Optional[int] = None, quantized: int = 0
) -> RankMemory:
    """Return the bytes of the model states of one rank of a run.

    Args:
        parameters: parameters of the model, adapters included.
        trained: trained parameters; None if all are trained.
        quantized: those of the parameters that have 4 bits (``method=qlora``).
    """
    trained = parameters if trained is None else trained
    precision, optimizer = config.train.precision, optimizer_of(config.optim)
    return rank_memory(parameters, trained, precision, config.zero, layout, optimizer, quantized)


def loading_bytes(config: RunConfig, parameters: int, layout: Layout) -> float:
    """Return the bytes of weights that one rank holds while the model of ``method=qlora`` is loaded: in host memory,
    with ZeRO-3 where the shards are.

    All weights are loaded in the run's precision, and then quantized one by one. With ZeRO-3 the largest tensor comes
    on top, for a moment up to three times. A test measures this.

    Args:
        parameters: parameters of the base model.
    """
    sharded = ModelState.parameters.is_sharded(config.zero.stage)
    return parameters * BYTES[config.train.precision] / (layout.data if sharded else 1)


def numbers_saved(quantized: int, precision: Precision) -> int:
    """Return the memory that 4-bit weights save, as a number of weights in the run's precision."""
    return round(quantized * (1 - (NF4_BYTES + NF4_CONSTANTS) / BYTES[precision]))


def eager_attention_bytes(
    tokens: int, heads: int, layers: int, precision: Precision, recompute: bool, rows: int = 1
) -> int:
    """Return the bytes of attention scores that eager attention keeps for the backward pass of a micro-batch.

    transformers keeps the result of the softmax of each head in fp32, and a copy in bf16 if the weights are bf16.

    Args:
        tokens: Length of a row in tokens.
        heads: Number of query heads.
        layers: Number of layers with attention.
        recompute: Gradient checkpointing: only the layer that is being computed keeps its scores.
        rows: Number of rows.
    """
    each = FP32_BYTES + (BYTES[precision] if precision is not Precision.fp32 else 0)
    return rows * heads * tokens**2 * each * (1 if recompute else layers)


def gathered_bytes(parameters: int, precision: Precision, trained: bool = True) -> int:
    """Return the bytes that ZeRO-3 needs on top of the model states while one module runs backward.

    ZeRO-3 gathers the whole weights of a module, and the whole gradient exists before it is sharded. For the fused
    weights of experts there is a copy of the gradient too, because transformers multiplies with the transposed weights.
    A test measures this.

    Args:
        parameters: Parameters of the module.
        trained: Whether they are trained.
    """
    return parameters * BYTES[precision] * (3 if trained else 1)


def placement(config: RunConfig) -> List[Tuple[str, str, str]]:
    """Return the rows (what, type, where) of the banner's table: the type of each kind of tensor, and where it is
    kept."""
    precision, zero = config.train.precision.name, config.zero

    def where(kind: ModelState, offload: Offload = Offload.none) -> str:
        memory = "host memory, " if offload is Offload.cpu else ""
        return memory + ("sharded over ranks" if kind.is_sharded(zero.stage) else "whole on every rank")

    in_8_bits = config.optim.optimizer is OptimizerKind.adamw_8bit
    states = "8 bits" if in_8_bits else "fp32"
    if config.optim.paged:
        states += ", paged to host memory when the GPU is full"
    if has_master_copy(config.train.precision, zero.stage):
        states += ", with fp32 master weights" if in_8_bits else ", with master weights"
    where_weights = where(ModelState.parameters, zero.offload_param)
    packed = [("frozen matrices", "NF4 (4 bits), scales whole on every rank", where_weights)]
    return [
        *(packed if config.method.facts.quantized else []),
        ("weights, activations", precision, where_weights),
        ("gradients", precision, where(ModelState.gradients)),
        ("optimizer states", states, where(ModelState.optimizer_states, zero.offload_optimizer)),
        ("loss", "fp32", "over the tokens of all ranks"),
    ]
