"""The floating point operations of a step, by the convention of model FLOPs utilization (MFU).

MFU is the share of the device's rate that the operations of the model itself need: forward and backward of all
tokens, without what is recomputed. For each token, a weight of a matrix takes 2 operations in the forward pass, 2 for
the gradient of its input, and 2 for its own gradient if it is trained. Attention takes 2 · n² · q operations in the
forward pass of a document of n tokens (causal; q is the width of the queries), and twice as many in the backward pass.
Chowdhery et al. 2022 (https://arxiv.org/abs/2204.02311, appendix B) count attention without the causal mask: 12 instead
of 6. Embeddings are looked up and not multiplied, so they do not count. In a mixture of experts, only the experts that
a token uses count.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelSize:
    """The number of weights that each token is multiplied with, and the width of attention."""

    trained: float
    frozen: float
    attention: int
    """Width of the queries, summed over the layers with attention."""


def step_flops(size: ModelSize, tokens: float, squares: float) -> float:
    """Return the floating point operations of the forward and the backward pass.

    Args:
        tokens: Number of tokens, without padding.
        squares: Sum of the squares of the lengths of the documents.
    """
    return tokens * (6 * size.trained + 4 * size.frozen) + 6 * size.attention * squares
