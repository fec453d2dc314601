"""What each optimizer keeps for a parameter. How it is built is in ``ftdist.engine.optimizers``."""

from dataclasses import dataclass
from typing import Dict, Tuple

from ftdist.config.schema import OptimizerKind, RunConfig

FP32_BYTES = 4


@dataclass(frozen=True)
class OptimizerSpec:
    """The tensors that an optimizer keeps, in fp32 and of the parameter's shape."""

    states: Tuple[str, ...]
    """Their names in the optimizer's ``state``."""

    @property
    def bytes_per_parameter(self) -> int:
        """Bytes of the states for each element of a trained parameter, without the fp32 master weight."""
        return FP32_BYTES * len(self.states)


OPTIMIZERS: Dict[OptimizerKind, OptimizerSpec] = {OptimizerKind.adamw: OptimizerSpec(("exp_avg", "exp_avg_sq"))}


def optimizer_of(config: RunConfig) -> OptimizerSpec:
    """Return what the optimizer of a run keeps."""
    return OPTIMIZERS[config.optim.optimizer]
