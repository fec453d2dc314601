"""What each optimizer keeps for a parameter. [light]"""

from dataclasses import dataclass
from typing import Dict, Tuple

from ftdist.config.schema import OptimizerKind, RunConfig

FP32_BYTES = 4


@dataclass(frozen=True)
class OptimizerSpec:
    name: str
    """Name for users."""
    states: Tuple[str, ...]
    """Names of its fp32 states, each of the shape of the parameter, as PyTorch's optimizer and the checkpoint files
    call them."""

    @property
    def bytes_per_parameter(self) -> int:
        """Bytes of the states of one trained parameter, without its fp32 master weight."""
        return FP32_BYTES * len(self.states)


OPTIMIZERS: Dict[OptimizerKind, OptimizerSpec] = {
    OptimizerKind.adamw: OptimizerSpec("AdamW", ("exp_avg", "exp_avg_sq")),
}


def optimizer_of(config: RunConfig) -> OptimizerSpec:
    """Return the specification of the optimizer that a config names."""
    return OPTIMIZERS[config.optim.optimizer]
