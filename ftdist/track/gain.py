"""Gain: how far the loss of each held-out document has fallen, with intervals over documents.

Every evaluation writes the losses of all held-out documents to ``RUN_DIR/evaluations/step-NNNNNNNN.npz``. A bootstrap
draws the documents of a set again and again: their number and their differences decide how well the loss is known.
"""

import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Dict, Iterator, Mapping, Optional, Tuple

import numpy as np

from ftdist.base.temporary import replace_file
from ftdist.run.rundir import RunDir

RESAMPLES = 1000
LEVEL = 0.95
"""Number of draws of the bootstrap, and the share of them that an interval holds."""
CHUNK = 1 << 22
"""Largest number of documents that are drawn at once."""

Documents = Tuple[np.ndarray, np.ndarray]
"""[documents] sums of the losses in nats, and numbers of trained tokens."""


@dataclass(frozen=True)
class Interval:
    """A loss in nats per token, and the bootstrap interval of ``LEVEL`` around it."""

    loss: float
    low: float
    high: float


def evaluation_file(run: RunDir, step: int) -> Path:
    """Return the path of the losses of an evaluation."""
    return run.evaluations / f"step-{step:08d}.npz"


def write_evaluation(run: RunDir, step: int, sets: Mapping[str, Documents]) -> None:
    """Keep the losses of the documents of each held-out set.

    Raises:
        OSError: They cannot be written.
    """
    run.evaluations.mkdir(exist_ok=True)
    arrays: Dict[str, Any] = {str(number): np.stack(both) for number, both in enumerate(sets.values())}
    with replace_file(evaluation_file(run, step)) as file:
        np.savez(file, names=np.array(list(sets)), **arrays)


def read_evaluation(run: RunDir, step: int) -> Dict[str, Documents]:
    """Return the losses of the documents of each held-out set; empty if they were not kept or are damaged."""
    try:
        with np.load(evaluation_file(run, step), allow_pickle=False) as found:
            return {str(name): tuple(found[str(number)]) for number, name in enumerate(found["names"])}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return {}


def gain_of(run: RunDir, losses: Mapping[str, Any]) -> Dict[str, Dict[str, Any]]:
    """Return the gain of each held-out set whose documents are known before the first step and at the last evaluation.

    Args:
        losses: (step, loss) of every evaluation by held-out set, from ``ftdist.track.report.heldout_losses``.

    Returns:
        For each set ``documents``, ``tokens``, and ``loss``, ``low`` and ``high`` of ``before``, ``after`` and
        ``change`` (after minus before, of the same documents: negative if the model has gained).
    """
    found: Dict[str, Dict[str, Any]] = {}
    for name, points in losses.items():
        (first, _), (last, _) = points[0], points[-1]
        before, after = (read_evaluation(run, step).get(name) for step in (first, last))
        if first != 0 or last == 0 or before is None or after is None or before[1].tolist() != after[1].tolist():
            continue
        tokens = before[1]
        sums = {"before": before[0], "after": after[0], "change": after[0] - before[0]}
        found[name] = {"documents": int((tokens > 0).sum()), "tokens": int(tokens.sum()),
                       **{part: asdict(interval_of(values, tokens)) for part, values in sums.items()}}  # fmt: skip
    return found


def interval_of(losses: np.ndarray, tokens: np.ndarray, seed: int = 0) -> Interval:
    """Return a loss per token, which is a ratio of sums over documents, with its percentile bootstrap interval.

    (Efron and Tibshirani 1993, An Introduction to the Bootstrap, section 13.3.) For the difference of two models,
    ``losses`` are the differences of the same documents.

    Args:
        losses: [documents] sums over the tokens of each document.
        tokens: [documents] numbers of tokens. Documents without any are left out.
    """
    losses, tokens = losses[tokens > 0], tokens[tokens > 0]
    ratios = np.concatenate(list(_resampled(losses, tokens, np.random.default_rng(seed))))
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(ratios, (tail, 1 - tail)) if np.isfinite(ratios).all() else (np.nan, np.nan)
    return Interval(float(losses.sum() / tokens.sum()), float(low), float(high))


def _resampled(losses: np.ndarray, tokens: np.ndarray, draw: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield the ratio of the sums of drawn documents, ``RESAMPLES`` in all."""
    left, most = RESAMPLES, max(1, CHUNK // len(losses))
    while left:
        documents = draw.integers(0, len(losses), (min(left, most), len(losses)))
        left -= len(documents)
        yield losses[documents].sum(1) / tokens[documents].sum(1)


def forgets_too_much(
    gain: Mapping[str, Mapping[str, Any]], curve: Optional[Tuple[int, float, float]], lr: float
) -> Optional[str]:
    """Return a warning if forgetting has outrun gain, else None.

    It has if KL(base ‖ now) minus two standard errors is larger than the fall of the loss over all held-out sets. Both
    are in nats per token: the model has then lost more on the texts of the base model than it has gained.

    Args:
        gain: From ``gain_of``.
        curve: Step, divergence and error of the last evaluation.
        lr: ``optim.lr``.
    """
    tokens = sum(part["tokens"] for part in gain.values())
    if not tokens or curve is None:
        return None
    gained = -sum(part["change"]["loss"] * part["tokens"] for part in gain.values()) / tokens
    _, kl, error = curve
    if not kl - 2 * error > gained:
        return None
    return (f"Forgetting has outrun gain: KL(base ‖ now) is {kl:.4f} ± {error:.4f} nats per token, and the held-out "
            f"loss changed by {-gained:+.4f}. Train with a lower rate: optim.lr={lr / 3:.1e}")  # fmt: skip
