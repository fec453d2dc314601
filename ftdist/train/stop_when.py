"""When a run ends before its last step: it has stopped gaining, or it forgets too much (``train.stop_when``).

The evaluations so far are summarized in the state of the run, which checkpoints hold. So a run that was killed and
resumed decides the same.
"""

import math
from typing import Dict, Optional

from ftdist.config.stop_when import StopWhenConfig
from ftdist.train.state import TrainState

GAIN, NET_GAIN = "gain/loss", "gain/net"
"""Names of the metrics: how much the held-out loss has fallen, and that minus forgetting, in nats per token."""


def gain_metrics(state: TrainState, kl: Optional[float]) -> Dict[str, float]:
    """Return the metrics of the gain at an evaluation. Before the first step, the state keeps its loss.

    Args:
        state: ``step`` and ``eval_loss`` are those of the evaluation.
        kl: KL(base ‖ now) in nats per token. None: not measured.

    Returns:
        ``GAIN`` and ``NET_GAIN`` as far as they are known. Empty before the first step.
    """
    if state.step == 0:
        state.first_loss = state.eval_loss
        return {}
    if state.first_loss is None or state.eval_loss is None:
        return {}
    gain = state.first_loss - state.eval_loss
    return {GAIN: gain} if kl is None else {GAIN: gain, NET_GAIN: gain - kl}


def count_evaluation(state: TrainState, stop: StopWhenConfig, kl: Optional[float]) -> None:
    """Compare a new evaluation with the best one, and set ``state.stop_reason`` if the run ends.

    The numbers are the same on all ranks, so all ranks decide the same.

    Args:
        state: ``step`` and ``eval_loss`` are those of the evaluation. ``eval_loss`` is removed if the model forgets too
            much, so that its checkpoint is not the best one.
        kl: KL(base ‖ now) in nats per token. None: not measured.
    """
    forgets = stop.max_forgetting is not None and kl is not None and not kl <= stop.max_forgetting  # true for NaN, too
    if forgets and state.step:
        state.eval_loss = None
        state.stop_reason = (
            f"it forgets too much: KL(base ‖ now) is {kl:.4f} nats per token at step {state.step}, and "
            f"train.stop_when.max_forgetting={stop.max_forgetting:g}"
        )
        return
    loss = state.eval_loss
    if loss is not None and math.isfinite(loss) and (state.best_loss is None or loss < state.best_loss):
        state.best_loss, state.best_step, state.since_best = loss, state.step, 0
        return
    state.since_best += state.step > 0
    if stop.patience is not None and state.since_best >= stop.patience:
        best = "" if state.best_loss is None else f", {state.best_loss:.4f} at step {state.best_step}"
        times = f"{state.since_best} evaluations" if state.since_best > 1 else "the last evaluation"
        state.stop_reason = f"it has stopped gaining: {times} had no lower held-out loss than the best one{best}"
