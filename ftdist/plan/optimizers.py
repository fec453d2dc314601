"""The states that each optimizer keeps for a parameter. ``ftdist.engine.optimizers`` builds the optimizers."""

from dataclasses import dataclass
from typing import Dict, Optional, Tuple

from ftdist.config.optim import OptimizerKind, values_of
from ftdist.config.schema import RunConfig

FP32_BYTES = 4
BLOCKS_CANNOT_BE_CUT = ("The 8-bit states of adamw_8bit have one scale for each block of a rank's flat part, so they "
                        "cannot be cut in another way")  # fmt: skip
"""Why a run with 8-bit states goes on only with the ranks and the stage that it was saved with."""


@dataclass(frozen=True)
class OptimizerSpec:
    """The tensors that an optimizer keeps. It may keep only some of them for a parameter."""

    states: Tuple[str, ...]
    """Names of the states that have the parameter's shape and can be cut like the parameter."""
    others: Tuple[str, ...] = ()
    """Names of the states that have another shape."""
    at_most: Optional[float] = None
    """Bytes of all states for each element of a trained parameter. It is set if they are not just ``states`` in
    fp32."""

    @property
    def bytes_per_parameter(self) -> float:
        """Bytes of the states for each element of a trained parameter, without the fp32 master weight."""
        return FP32_BYTES * len(self.states) if self.at_most is None else self.at_most


OPTIMIZERS: Dict[OptimizerKind, OptimizerSpec] = {
    OptimizerKind.adamw: OptimizerSpec(("exp_avg", "exp_avg_sq")),
    # A byte for each element of both moments, and 4 for each block of 256. Tensors below 4096 elements stay in fp32.
    OptimizerKind.adamw_8bit: OptimizerSpec(("state1", "state2"), ("absmax1", "absmax2"), 2.1),
    # 4 bytes for each row and each column: less than 0.3 for each element of an adapter of rank 16, which is 16 wide,
    # and less than 0.01 for those of a whole model. The variance is that of norms and biases.
    OptimizerKind.adafactor: OptimizerSpec(("variance",), ("row_var", "col_var"), 0.3),
    OptimizerKind.lion: OptimizerSpec(("exp_avg",)),
    # 4 bytes for the elements of matrices; 8 for embeddings, the head, norms and biases.
    OptimizerKind.muon: OptimizerSpec(("momentum_buffer", "exp_avg", "exp_avg_sq"), (), 8.0),
    OptimizerKind.sgd: OptimizerSpec(("momentum_buffer",)),
}


def optimizer_of(config: RunConfig) -> OptimizerSpec:
    """Return what the optimizer of a run keeps."""
    if config.optim.optimizer is OptimizerKind.sgd and not values_of(config.optim)["momentum"]:
        return OptimizerSpec(())
    return OPTIMIZERS[config.optim.optimizer]
