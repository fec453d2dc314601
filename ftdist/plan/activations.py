"""The memory of activations: what the layers of a model keep between the forward and the backward pass.

The sizes are those of a decoder layer of transformers with two RMS norms, fused attention and a gated MLP (Llama, Qwen,
Mistral, SmolLM). A test compares them with the tensors that autograd saves. Other layers keep more or less. What a
recomputed layer keeps is the same for all layers.
"""

from dataclasses import dataclass
from typing import Optional

from ftdist.config.optim import FP32_BYTES
from ftdist.config.schema import Precision, Recompute, TrainConfig
from ftdist.plan.memory import BYTES


@dataclass(frozen=True)
class LayerSizes:
    """The sizes of a decoder layer."""

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    """Width of the gated MLP."""


@dataclass(frozen=True)
class Activations:
    """Bytes that the layers of a rank keep for the backward pass of one micro-batch."""

    device: int
    host: int
    """In host memory, because of ``train.offload_activations``."""
    working: int
    """Additional bytes of the layer that is being recomputed, while its backward pass runs."""

    @property
    def peak(self) -> int:
        """Bytes on the device."""
        return self.device + self.working


def recomputes_all(train: TrainConfig) -> bool:
    """Return whether every layer is recomputed in the backward pass."""
    return train.gradient_checkpointing is not Recompute.none and train.recompute_every == 1


def kept_activations(
    train: TrainConfig, sizes: LayerSizes, layers: int, tokens: int, keeps_attention: bool = False
) -> Activations:
    """Return what all layers keep.

    Args:
        layers: Number of layers.
        tokens: Tokens of a micro-batch.
        keeps_attention: Whether recomputed layers keep the outputs of attention.
    """
    recomputes = train.gradient_checkpointing is not Recompute.none
    recomputed = -(-layers // train.recompute_every) if recomputes else 0
    whole = whole_layer_bytes(sizes, tokens, train.precision)
    each = recomputed_layer_bytes(sizes, tokens, train.precision, keeps_attention)
    others = (layers - recomputed) * whole
    working = whole if recomputes else 0
    if train.offload_activations:  # the activations of two layers are on the device
        return Activations(others + min(2, recomputed) * each, recomputed * each, working)
    return Activations(others + recomputed * each, 0, working)


def whole_layer_bytes(sizes: LayerSizes, tokens: int, precision: Precision) -> int:
    """Return the bytes that a layer keeps if nothing of it is recomputed.

    For each token: the input of each norm in fp32, and what it is before and after the multiplication with the norm's
    weight; queries, keys and values; the result of attention, for each document and of the row; gate, up, and their
    products in the MLP; and what the norms and attention keep in fp32 (one number for each norm and head).
    """
    width, queries = BYTES[precision], sizes.heads * sizes.head_dim
    numbers = 4 * sizes.hidden + 3 * queries + 2 * sizes.kv_heads * sizes.head_dim + 4 * sizes.intermediate
    return tokens * (numbers * width + FP32_BYTES * (2 * sizes.hidden + sizes.heads + 2))


def recomputed_layer_bytes(sizes: LayerSizes, tokens: int, precision: Precision, keeps_attention: bool) -> int:
    """Return the bytes that a recomputed layer keeps: its input, and with ``keeps_attention`` the result of attention
    and one fp32 number for each head."""
    width = BYTES[precision]
    attention = sizes.heads * (sizes.head_dim * width + FP32_BYTES) if keeps_attention else 0
    return tokens * (sizes.hidden * width + attention)


def layer_sizes(
    hidden: Optional[int], heads: Optional[int], kv_heads: Optional[int], head_dim: Optional[int],
    intermediate: Optional[int],
) -> Optional[LayerSizes]:  # fmt: skip
    """Return the sizes of a layer from the fields of a model's config; None if one is missing."""
    if not (isinstance(hidden, int) and isinstance(heads, int) and isinstance(intermediate, int)):
        return None
    return LayerSizes(hidden, heads, kv_heads or heads, head_dim or hidden // heads, intermediate)
