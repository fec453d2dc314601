"""Defines which tensors each ZeRO stage shards.

Source: Rajbhandari et al. 2020, ZeRO: Memory Optimizations Toward Training Trillion Parameter Models,
https://arxiv.org/abs/1910.02054
"""

from enum import Enum


class ModelState(Enum):
    """A kind of tensor that ZeRO shards over the data parallel ranks. The value is the first stage that shards it."""

    optimizer_states = 1
    gradients = 2
    parameters = 3

    def is_sharded(self, stage: int) -> bool:
        """Return whether ZeRO stage ``stage`` (0 to 3) gives each rank only its own part of these tensors."""
        return stage >= self.value
