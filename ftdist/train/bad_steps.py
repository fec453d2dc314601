"""Bad steps: when the update of a step is skipped, and when the run rolls back to a checkpoint.

A step is bad if its loss or its gradient norm is not finite. With ``train.grad_spike_z`` it is also bad if its gradient
norm is a sudden spike. The loss and the norm are sums over all ranks, so all ranks decide the same.
"""

import math
import statistics
from typing import Any, Dict, List, Optional, Sequence

from ftdist.base.errors import TrainError
from ftdist.config.schema import TrainConfig
from ftdist.data.row_order import row_ids
from ftdist.train.state import Training, TrainState

MAD_TO_DEVIATION = 1.4826
"""Standard deviation of a normal distribution divided by its median absolute deviation (MAD)."""
SMALLEST_DEVIATION = 1e-3
"""Smallest deviation as a share of the median. After norms that were nearly equal, a small change is not a spike."""
SHOWN_ROWS = 8
"""Maximum number of training rows that a message names."""


def why_bad(train: TrainConfig, norms: Sequence[float], loss: float, grad_norm: float) -> Optional[str]:
    """Return why the update of a step must be skipped, or None if it may be made.

    Args:
        norms: Gradient norms of the last good steps.
    """
    if not math.isfinite(loss):
        return f"the loss is {loss}"
    if not math.isfinite(grad_norm):
        return "the gradient norm is not finite"
    if train.grad_spike_z is not None and len(norms) >= train.grad_spike_window:
        score = spike_score(norms, grad_norm)
        if score > train.grad_spike_z:
            median = statistics.median(norms)
            return f"the gradient norm {grad_norm:.4g} is {score:.1f} deviations above the median {median:.4g}"
    return None


def spike_score(norms: Sequence[float], grad_norm: float) -> float:
    """Return how many robust standard deviations ``grad_norm`` is above the median of ``norms``.

    This is the modified z-score of Iglewicz & Hoaglin 1993, with the standard deviation estimated as 1.4826 · MAD.
    """
    median = statistics.median(norms)
    deviation = MAD_TO_DEVIATION * statistics.median(abs(norm - median) for norm in norms)
    return (grad_norm - median) / max(deviation, SMALLEST_DEVIATION * median, 1e-30)


def count_step(state: TrainState, train: TrainConfig, bad: Optional[str], grad_norm: float) -> None:
    """Update the number of bad steps in a row, and the gradient norms that the next step is compared with."""
    state.bad_in_a_row = state.bad_in_a_row + 1 if bad else 0
    if bad is None and train.grad_spike_z is not None:
        state.grad_norms = [*state.grad_norms, grad_norm][-train.grad_spike_window :]


def batch_rows(training: Training, batch: int, batches: int = 1) -> List[int]:
    """Return the ids of the training rows of ``batches`` global batches, starting at index ``batch`` of the data
    order."""
    size = training.plan.global_batch_size
    return row_ids(training.config.seed, training.train_set.num_rows, batch * size, batches * size).tolist()


def report_bad_step(training: Training, index: int, bad: str) -> Dict[str, Any]:
    """Print one line about bad step ``index`` (0 is the first), and return what metrics.jsonl records of it."""
    training.progress.note(
        f"step {index + 1}: {bad}. The weights are not updated in this step; metrics.jsonl lists its training rows"
    )
    return {"train/bad": bad, "train/bad_rows": batch_rows(training, training.state.batch_index(index))}


def roll_back(training: Training, bad: str) -> None:
    """Load the last checkpoint that was due, and skip all batches that the run has used since then.

    A checkpoint is due every ``train.checkpoint_every`` steps. One that was saved only because the run was stopped is
    not used if there is another one, so that the result does not depend on when a run was stopped. The skipped batches
    are added to ``state.skipped`` as ``[step, batches]``. If the run is killed before the next checkpoint, it meets the
    same bad steps again and rolls back again.

    Args:
        bad: Why the last step is bad.

    Raises:
        TrainError: There is no checkpoint, or the run has rolled back ``train.max_rollbacks`` times.
    """
    train, state, last = training.config.train, training.state, training.state.step
    first = last - state.bad_in_a_row
    found = f"{state.bad_in_a_row} consecutive bad steps ({first + 1} to {last}: {bad})"
    rows = batch_rows(training, state.batch_index(first), state.bad_in_a_row)
    if state.rollbacks >= train.max_rollbacks:
        several = "rollbacks" if state.rollbacks > 1 else "rollback"
        tries = f"after {state.rollbacks} {several}" if state.rollbacks else "with train.max_rollbacks=0"
        raise TrainError(f"{found} {tries}; training rows of these steps: {_shorten(rows)}",
                         "finite losses and gradient norms",
                         "lower optim.lr, and look at those rows (debug.detect_anomaly=true)")  # fmt: skip
    training.saver.join()
    saved = training.saver.load_newest(due=True)
    if saved is None:
        raise TrainError(f"{found}, and there is no checkpoint to roll back to; training rows of these "
                         f"steps: {_shorten(rows)}",
                         "a checkpoint from before these steps",
                         "set train.checkpoint_every=100, or lower optim.lr")  # fmt: skip
    training.state = restored = TrainState.from_dict(saved)
    start = restored.step
    skipped = [restored.batch_index(start), state.batch_index(last - 1)]
    # Batches that were skipped by earlier rollbacks to this checkpoint or an older one stay skipped.
    restored.skipped = [[at, batches] for at, batches in state.skipped if at <= start]
    restored.skipped.append([start, skipped[1] + 1 - restored.batch_index(start)])
    restored.bad_in_a_row, restored.rollbacks = 0, state.rollbacks + 1
    training.tracker.rewind(start, evaluated=restored.evaluated_step == start)
    # The record belongs to the first step after the checkpoint. If the run is killed before the next checkpoint, a
    # resume removes it together with this step.
    training.tracker.log(start + 1, {"train/rolled_back_from": last, "train/bad": bad, "train/bad_rows": rows,
                                     "train/batches_left_out": skipped})  # fmt: skip
    training.progress.note(
        f"{found}: rolled back to the checkpoint of step {start}; batches {skipped[0]} to {skipped[1]} of the data are "
        f"skipped; training rows of the bad steps: {_shorten(rows)}"
    )


def _shorten(rows: List[int]) -> str:
    """Return the first rows as text, and the number of all rows if there are more."""
    shown = ", ".join(str(row) for row in rows[:SHOWN_ROWS])
    return f"{shown} … ({len(rows)})" if len(rows) > SHOWN_ROWS else shown
