"""The types of numbers in a GGUF file: how tensors are rounded, and by how much the model may change."""

from dataclasses import dataclass
from typing import Any, Dict, Tuple

import torch

BLOCK = 32
"""Numbers that share a scale in the quantized types."""


@dataclass(frozen=True)
class GgufType:
    """One type of file."""

    name: str
    weights: float
    """Largest allowed relative error of a tensor, in the Frobenius norm."""
    logits: float
    """Largest allowed error of the logits over the probe text: root of the mean square, relative to their standard
    deviation."""

    @property
    def blocks(self) -> bool:
        return self.name.startswith("Q")


TYPES: Dict[str, GgufType] = {
    kind.name: kind for kind in (
        GgufType("F32", 0.0, 1e-5), GgufType("F16", 1e-3, 5e-3), GgufType("BF16", 4e-3, 3e-2),
        GgufType("Q8_0", 2e-2, 5e-2), GgufType("Q5_1", 8e-2, 0.4), GgufType("Q5_0", 8e-2, 0.4),
        GgufType("Q4_1", 0.16, 0.6), GgufType("Q4_0", 0.16, 0.6),
    )
}  # fmt: skip
"""What the package ``gguf`` can write."""


def type_of(kind: GgufType, place: str, shape: Tuple[int, ...]) -> str:
    """Return the type of a tensor: vectors stay in fp32, and embedding and head get at least 8 bits.

    Rows that do not fill blocks are written in fp16, as llama.cpp does.
    """
    if len(shape) == 1 or kind.name == "F32":
        return "F32"
    if not kind.blocks:
        return kind.name
    if shape[-1] % BLOCK:
        return "F16"
    return "Q8_0" if place in ("token_embd.weight", "output.weight") else kind.name


def pack(tensor: torch.Tensor, name: str) -> Any:
    """Return the bytes or numbers of a tensor in fp32, as the writer of ``gguf`` takes them."""
    from gguf import GGMLQuantizationType, quantize

    return quantize(tensor.contiguous().numpy(), GGMLQuantizationType[name])


def packed_size(shape: Tuple[int, ...], name: str) -> int:
    """Return the number of bytes of a tensor in a file."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    numbers, size = GGML_QUANT_SIZES[GGMLQuantizationType[name]]
    return torch.Size(shape).numel() // numbers * size
