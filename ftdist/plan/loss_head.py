"""The memory of the loss head: what it needs while it computes, on top of the model states and the activations.

The logits are computed for one chunk of tokens at a time (``ftdist.objective.chunked``). A test compares the sizes with
the memory that is allocated.
"""

import math

from ftdist.config.optim import FP32_BYTES
from ftdist.config.schema import Precision
from ftdist.plan.memory import BYTES

CHUNK_BYTES = {"cpu": 128 * 2**20, "cuda": 512 * 2**20}
"""Size of the fp32 logits of a chunk by type of device. Smaller chunks are slower: their products are small, and the
gradient of the weight is added to its sum more often."""


def most_tokens(device: str, vocab_size: int) -> int:
    """Return the number of tokens of a chunk that ``CHUNK_BYTES`` allows.

    Args:
        device: Type of the device.
    """
    return max(1, CHUNK_BYTES.get(device, CHUNK_BYTES["cuda"]) // (FP32_BYTES * vocab_size))


def chunk_size(tokens: int, most: int) -> int:
    """Return the size of parts of at most ``most`` tokens that are as equal as possible."""
    return math.ceil(tokens / math.ceil(tokens / most))


def head_bytes(
    hidden: int, vocab_size: int, tokens: int, chunk: int, precision: Precision, device: str, trained: bool = True
) -> int:
    """Return the bytes that the loss head needs at most, in the forward and backward pass of one micro-batch.

    For one chunk: logits and log-probabilities in fp32, and the gradient of the logits in the run's precision. For all
    tokens: the gradient of the hidden states. If the weight is trained: its gradient, summed in fp32, and what a chunk
    adds to it, in the run's precision. On a CPU PyTorch converts the latter to fp32 before it adds it.

    Args:
        hidden: Size of a hidden state.
        tokens: Trained tokens of the micro-batch.
        chunk: Largest number of tokens of a chunk.
        device: Type of the device.
        trained: Whether the weight of the head is trained.
    """
    width = BYTES[precision]
    rounded = 0 if precision is Precision.fp32 else width
    logits = chunk_size(tokens, chunk) * vocab_size * (2 * FP32_BYTES + rounded)
    converted = FP32_BYTES if rounded and device == "cpu" else 0
    weight = vocab_size * hidden * (FP32_BYTES + width + converted) if trained else 0
    return logits + tokens * hidden * width + weight
