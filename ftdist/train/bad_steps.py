"""Steps whose update is left out, and what follows when they do not end.

A step is bad if its loss or its gradient norm is not finite, or, where that is asked for, if the norm is a sudden
spike. All ranks see the same loss and norm, sums over all of them, and so decide alike.
"""

import math
import statistics
from typing import Any, Dict, List, Optional, Sequence

from ftdist.base.errors import TrainError
from ftdist.config.schema import TrainConfig
from ftdist.data.row_order import row_ids
from ftdist.train.state import Done, Training

MAD_TO_DEVIATION = 1.4826
"""A normal distribution's standard deviation over its median absolute deviation."""
SMALLEST_DEVIATION = 1e-3
"""As a share of the median: norms that were all but equal make no spike of the next one."""


def why_bad(train: TrainConfig, norms: Sequence[float], loss: float, grad_norm: float) -> Optional[str]:
    """Why a step must not be updated with; None where it may. ``norms`` are those of the last good steps."""
    if not math.isfinite(loss):
        return f"the loss is {loss}"
    if not math.isfinite(grad_norm):
        return "the gradient norm is not finite"
    if train.grad_spike_z is not None and len(norms) >= train.grad_spike_window:
        score = spike_score(norms, grad_norm)
        if score > train.grad_spike_z:
            usual = statistics.median(norms)
            return f"the gradient norm {grad_norm:.4g} is {score:.1f} deviations above the usual {usual:.4g}"
    return None


def spike_score(norms: Sequence[float], grad_norm: float) -> float:
    """How many robust standard deviations a norm lies above the median of others."""
    median = statistics.median(norms)
    deviation = MAD_TO_DEVIATION * statistics.median(abs(norm - median) for norm in norms)
    return (grad_norm - median) / max(deviation, SMALLEST_DEVIATION * median, 1e-30)


def note_step(done: Done, train: TrainConfig, bad: Optional[str], grad_norm: float) -> None:
    """Count bad steps in a row, and remember the norms that a spike is measured against."""
    done.bad_in_a_row = done.bad_in_a_row + 1 if bad else 0
    if bad is None and train.grad_spike_z is not None:
        done.grad_norms = [*done.grad_norms, grad_norm][-train.grad_spike_window :]


def batch_rows(training: Training, batch: int, batches: int = 1) -> List[int]:
    """Ids of the training rows of some global batches in the run's data order."""
    size = training.plan.global_batch_size
    return row_ids(training.config.seed, training.train_set.num_rows, batch * size, batches * size).tolist()


def bad_record(training: Training, index: int, bad: str) -> Dict[str, Any]:
    """What metrics.jsonl says of bad step ``index`` besides its numbers; one line for the user."""
    training.progress.note(f"step {index + 1}: {bad}; no weight was changed, metrics.jsonl names the rows")
    return {"train/bad": bad, "train/bad_rows": batch_rows(training, training.done.batch_index(index))}


def roll_back(training: Training, bad: str) -> None:
    """Go back to the last checkpoint that was due and leave out the batches that the run has had since: where a run was
    asked to stop does not change what becomes of it.

    The loader's state stays a few integers: ``[step, batches]`` is added to ``done.skipped``. An attempt that is killed
    before a checkpoint is saved with it comes to the same bad steps and goes back again.

    Raises:
        TrainError: there is no checkpoint, or the run has gone back too often.
    """
    train, done, ended = training.config.train, training.done, training.done.step
    first = ended - done.bad_in_a_row
    found = f"{done.bad_in_a_row} bad steps in a row, {first + 1} to {ended}: {bad}"
    rows = batch_rows(training, done.batch_index(first), done.bad_in_a_row)
    if done.rollbacks >= train.max_rollbacks:
        times = f"after going back {done.rollbacks} times" if done.rollbacks else "with train.max_rollbacks=0"
        raise TrainError(f"{found}, {times}; training rows {_short(rows)}", "finite losses and gradient norms",
                         "lower optim.lr, and look at those rows (debug.detect_anomaly=true)")  # fmt: skip
    training.saver.join()
    state = training.saver.load_newest(due=True)
    if state is None:
        raise TrainError(f"{found}, and no checkpoint to go back to; training rows {_short(rows)}",
                         "a checkpoint from before", "train.checkpoint_every=100, or a lower optim.lr")  # fmt: skip
    training.done = back = restored(state)
    start = back.step
    left_out = [back.batch_index(start), done.batch_index(ended - 1)]
    # What was left out there before, still is.
    back.skipped = [[at, batches] for at, batches in done.skipped if at <= start]
    back.skipped.append([start, left_out[1] + 1 - back.batch_index(start)])
    back.bad_in_a_row, back.rollbacks = 0, done.rollbacks + 1
    training.tracker.rewind(start, evaluated=back.evaluated_step == start)
    # Belongs to the first step after the checkpoint: it is forgotten with that, should the run be cut before the next.
    training.tracker.log(start + 1, {"train/rolled_back_from": ended, "train/bad": bad, "train/bad_rows": rows,
                                     "train/batches_left_out": left_out})  # fmt: skip
    training.progress.note(f"{found}: back to the checkpoint of step {start}; batches {left_out[0]} to {left_out[1]} "
                           f"of the data are left out; training rows of the bad steps: {_short(rows)}")  # fmt: skip


def restored(state: Dict[str, Any]) -> Done:
    """How far a run had come at a checkpoint, from its state."""
    return Done(**{name: state[name] for name in Done().as_dict() if name in state})


def _short(rows: List[int]) -> str:
    shown = ", ".join(str(row) for row in rows[:8])
    return f"{shown} … ({len(rows)})" if len(rows) > 8 else shown
