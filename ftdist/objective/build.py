"""The training objectives, by the value of ``objective.kind``."""

from typing import Callable, Dict, Optional

from ftdist.config.schema import ObjectiveKind, RunConfig
from ftdist.objective.balance import BalanceLoss
from ftdist.objective.base import Objective
from ftdist.objective.sft import SupervisedFineTuning

OBJECTIVES: Dict[ObjectiveKind, Callable[[RunConfig, int, Optional[BalanceLoss]], Objective]] = {
    ObjectiveKind.sft: lambda config, vocab_size, balance: SupervisedFineTuning(vocab_size, balance),
}


def build_objective(config: RunConfig, vocab_size: int, balance: float = 0.0) -> Objective:
    """Build the objective of a run.

    Args:
        vocab_size: Number of rows of the embedding that are real tokens.
        balance: Coefficient of the balance loss of a mixture of experts. 0: there is none.
    """
    return OBJECTIVES[config.objective.kind](config, vocab_size, BalanceLoss(balance) if balance else None)
