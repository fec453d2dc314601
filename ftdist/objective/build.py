"""The training objectives, by the value of ``objective.kind``."""

from typing import Callable, Dict

from ftdist.config.schema import ObjectiveKind, RunConfig
from ftdist.objective.base import Objective
from ftdist.objective.sft import SupervisedFineTuning

OBJECTIVES: Dict[ObjectiveKind, Callable[[RunConfig, int], Objective]] = {
    ObjectiveKind.sft: lambda config, vocab_size: SupervisedFineTuning(vocab_size),
}


def build_objective(config: RunConfig, vocab_size: int) -> Objective:
    """Build the objective of a run.

    Args:
        vocab_size: Number of rows of the embedding that are real tokens.
    """
    return OBJECTIVES[config.objective.kind](config, vocab_size)
