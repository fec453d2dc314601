"""The training objectives, by the value of ``objective.kind``."""

from typing import Any, Callable, Dict, Optional, Tuple

from ftdist.config.schema import LossHead, ObjectiveKind, RunConfig
from ftdist.objective.balance import BalanceLoss
from ftdist.objective.base import Objective
from ftdist.objective.head import Head, find_head
from ftdist.objective.sft import SupervisedFineTuning
from ftdist.parallel.mesh import Mesh

OBJECTIVES: Dict[ObjectiveKind, Callable[[RunConfig, int, Optional[BalanceLoss], Optional[Head]], Objective]] = {
    ObjectiveKind.sft: lambda config, vocab_size, balance, head: SupervisedFineTuning(vocab_size, balance, head),
}


def build_objective(config: RunConfig, vocab_size: int, head: Optional[Head] = None, balance: float = 0.0) -> Objective:
    """Build the objective of a run.

    Args:
        vocab_size: Number of rows of the embedding that are real tokens.
        head: The head of the model. None: the loss is computed from the model's own logits.
        balance: Coefficient of the balance loss of a mixture of experts. 0: there is none.
    """
    return OBJECTIVES[config.objective.kind](config, vocab_size, BalanceLoss(balance) if balance else None, head)


def choose_head(config: RunConfig, model: Any, vocab_size: int, mesh: Mesh) -> Tuple[Optional[Head], str]:
    """Return the head from which losses are computed, or None and why the model's own logits are used.

    Every rank must call it, and all ranks get the same answer.

    Args:
        model: The model, or an engine.
        vocab_size: Number of rows of the embedding that are real tokens.
    """
    if config.objective.loss_head is LossHead.logits:
        return None, ""
    found = find_head(model, vocab_size, mesh.device)
    if mesh.sum([float(isinstance(found, str))])[0]:
        return None, found if isinstance(found, str) else "another rank cannot use its head"
    assert isinstance(found, Head)
    return found, ""
