"""Experts of any size: PyTorch's grouped product needs rows of whole 16 bytes, and the others run one by one."""

from typing import Any, Tuple

import pytest
import torch
from transformers import AutoConfig

from ftdist.model.parts import auto_class


def numbers(implementation: str, dtype: torch.dtype, hidden: int, inner: int) -> Tuple[Any, Any]:
    """Return the logits of a small mixture and the gradients of its experts."""
    arch = AutoConfig.for_model(
        "qwen3_moe", vocab_size=99, hidden_size=hidden, intermediate_size=32, moe_intermediate_size=inner,
        num_experts=4, num_experts_per_tok=2, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
        head_dim=8,
    )  # fmt: skip
    torch.manual_seed(0)
    model = auto_class(arch).from_config(arch, dtype=dtype, experts_implementation=implementation)
    logits = model(input_ids=torch.arange(12)[None]).logits.float()
    logits.square().sum().backward()
    found = [p.grad.float().flatten() for name, p in model.named_parameters() if "experts" in name]
    return logits.detach(), torch.cat(found)


@pytest.mark.parametrize("sizes", [(64, 20), (60, 32), (61, 19)], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_sizes_that_the_grouped_product_lacks(sizes: Tuple[int, int], dtype: torch.dtype) -> None:
    (logits, gradients), (expected, eager) = (numbers(name, dtype, *sizes) for name in ("grouped_mm", "eager"))
    rounding = 1e-6 if dtype is torch.float32 else 2e-2
    assert (logits - expected).abs().max() <= rounding * expected.abs().max()
    assert (gradients - eager).norm() <= rounding * eager.norm()
