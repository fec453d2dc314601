"""The product that transformers computes for all experts of a layer together, for sizes that PyTorch's kernel lacks.

PyTorch's ``grouped_mm`` needs rows whose size in bytes is a multiple of 16. transformers 5.23 checks only where the
tensors begin, and would fail with other sizes (in bf16, those that are not a multiple of 8). It has a slower product
for one expert after the other, which is used for these sizes here.
"""

from typing import Any, Callable

import torch
from transformers.integrations import moe

ROW_BYTES = 16
"""The number of bytes of a row must be a multiple of this."""


def _for_any_size(can_use: Callable[..., bool]) -> Callable[..., bool]:
    def can_use_grouped_mm(input: torch.Tensor, weight: torch.Tensor, *args: Any, **kwargs: Any) -> bool:
        rows = (input.shape[-1], *weight.shape[1:])  # of the input, of the weight, and of the result
        whole = all(size * weight.element_size() % ROW_BYTES == 0 for size in rows)
        return whole and can_use(input, weight, *args, **kwargs)

    return can_use_grouped_mm


def allow_any_size() -> None:
    """Let transformers use the slower product for sizes that the kernel lacks. Calling it again changes nothing."""
    if moe._can_use_grouped_mm.__module__ == moe.__name__:
        moe._can_use_grouped_mm = _for_any_size(moe._can_use_grouped_mm)
