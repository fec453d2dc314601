"""The decision to end a run before its last step."""

import math
from typing import List, Optional, Sequence, Tuple

import pytest

from ftdist.config.stop_when import StopWhenConfig
from ftdist.train.state import TrainState
from ftdist.train.stop_when import GAIN, NET_GAIN, count_evaluation, gain_metrics

Evaluation = Tuple[Optional[float], Optional[float]]
"""Held-out loss and KL(base ‖ now)."""


def stopped_at(stop: StopWhenConfig, evaluations: Sequence[Evaluation], resumed: bool = False) -> TrainState:
    """Return the state after the evaluation that ends the run, or after the last one.

    Args:
        resumed: Go through the content of a checkpoint after each evaluation.
    """
    state = TrainState()
    for number, (loss, kl) in enumerate(evaluations):
        state.step, state.eval_loss = 10 * number, loss
        count_evaluation(state, stop, kl)
        if state.stop_reason:
            break
        state = TrainState.from_dict(state.as_dict()) if resumed else state
    return state


@pytest.mark.parametrize("resumed", [False, True])
@pytest.mark.parametrize(("losses", "patience", "step", "best"), [
    ([3, 2, 2.5, 2.4, 2.3, 1], 2, 30, 10),
    ([3, 2, 2.5, 1.9, 2.0, 1.8], 2, None, 50),
    ([3, 2, 2.0], 1, 20, 10),
    ([3, 3.5, 4], 2, 20, 0),
    ([3, math.nan, math.inf, 2], 2, 20, 0),
    ([math.nan, 2, 3], 2, None, 10),
    ([3, 4, 5, 6, 7], None, None, 0),
])  # fmt: skip
def test_patience_is_the_number_of_evaluations_in_a_row_without_a_new_best(
    losses: List[float], patience: Optional[int], step: Optional[int], best: int, resumed: bool
) -> None:
    state = stopped_at(StopWhenConfig(patience=patience), [(loss, None) for loss in losses], resumed)
    assert (state.step if state.stop_reason else None, state.best_step) == (step, best)
    if state.stop_reason:
        assert f"at step {best}" in state.stop_reason and state.eval_loss is not None


def test_a_model_that_forgets_too_much_ends_the_run_and_is_never_the_best() -> None:
    stop = StopWhenConfig(max_forgetting=0.1)
    state = stopped_at(stop, [(3, 0.0), (2, 0.1), (1, 0.2)])
    assert (state.step, state.best_step, state.best_loss, state.eval_loss) == (20, 10, 2, None)
    assert state.stop_reason == (
        "it forgets too much: KL(base ‖ now) is 0.2000 nats per token at step 20, and "
        "train.stop_when.max_forgetting=0.1"
    )
    assert stopped_at(stop, [(3, 0.0), (2, math.nan)]).stop_reason
    assert not stopped_at(stop, [(3, None), (2, None)]).stop_reason, "not measured"
    assert not stopped_at(StopWhenConfig(), [(3, 0.0), (2, 9.0)]).stop_reason


def test_the_gain_is_the_fall_of_the_loss_and_the_net_gain_is_less_by_what_was_forgotten() -> None:
    state = TrainState(eval_loss=3.0)
    assert gain_metrics(state, 0.0) == {}
    state = TrainState.from_dict(state.as_dict())
    state.step, state.eval_loss = 10, 2.5
    assert gain_metrics(state, 0.125) == {GAIN: 0.5, NET_GAIN: 0.375}
    assert gain_metrics(state, None) == {GAIN: 0.5}
    assert gain_metrics(TrainState(step=10, eval_loss=2.5), 0.125) == {}, "a run of an earlier version"
