"""Gain: how far the loss of each held-out document has fallen, with intervals over documents.

Every evaluation writes the losses and metrics of all held-out documents to
``RUN_DIR/evaluations/step-NNNNNNNN.npz``. A bootstrap draws samples of the documents of a set. The intervals
show how well the loss is known, which depends on the number of documents and their differences.
"""

import zipfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Optional, Tuple

import numpy as np

from ftdist.base.temporary import replace_file
from ftdist.run.rundir import RunDir

RESAMPLES = 1000
LEVEL = 0.95
"""Number of draws of the bootstrap, and the share of them that an interval holds."""
CHUNK = 1 << 22
"""Largest number of documents that are drawn at once."""


@dataclass(frozen=True)
class DocumentLosses:
    """The losses of the documents of a set, over all ranks. A document that is in several rows is listed for each."""

    losses: np.ndarray
    """[documents] float64: sums of the losses in nats, in the order of the rows."""
    weights: np.ndarray
    """[documents] float64: the weights (for SFT the numbers of trained tokens)."""
    metrics: Dict[str, np.ndarray] = field(default_factory=dict)
    """[documents] float64: sums of other metrics over the same tokens, by name, for instance ``accuracy``."""
    token_losses: np.ndarray = field(default_factory=lambda: np.zeros(0))
    """[tokens] float64: losses of the tokens of the first documents (``ftdist.data.words.kept_limits``); 0 for tokens
    that are not trained."""

    @property
    def loss(self) -> float:
        """The sum of all losses."""
        return float(self.losses.sum())

    @property
    def weight(self) -> int:
        """The sum of all weights."""
        return int(self.weights.sum())

    def means(self) -> Dict[str, float]:
        """Return ``loss`` and each metric as a mean over all tokens, not over documents."""
        return {name: float(sums.sum()) / self.weight for name, sums in {"loss": self.losses, **self.metrics}.items()}


@dataclass(frozen=True)
class Interval:
    """A mean over tokens, for instance a loss in nats per token, and the bootstrap interval of ``LEVEL`` around it.

    The ends are nan if the interval is not known: one document says nothing about others.
    """

    value: float
    low: float
    high: float


def evaluation_file(run: RunDir, step: int) -> Path:
    """Return the path of the losses of an evaluation."""
    return run.evaluations / f"step-{step:08d}.npz"


def write_evaluation(run: RunDir, step: int, sets: Mapping[str, DocumentLosses]) -> None:
    """Keep the losses of the documents of each held-out set. All sets have the same metrics.

    Raises:
        OSError: They cannot be written.
    """
    run.evaluations.mkdir(exist_ok=True)
    arrays: Dict[str, Any] = {str(number): np.stack([one.losses, one.weights, *one.metrics.values()])
                              for number, one in enumerate(sets.values())}  # fmt: skip
    metrics = next((list(one.metrics) for one in sets.values()), [])
    with replace_file(evaluation_file(run, step)) as file:
        np.savez(file, names=np.array(list(sets)), metrics=np.array(metrics, dtype=np.str_), **arrays)


def read_evaluation(run: RunDir, step: int) -> Dict[str, DocumentLosses]:
    """Return the losses of the documents of each held-out set; empty if they were not kept or are damaged.

    Runs of earlier versions kept no metrics.
    """
    sets: Dict[str, DocumentLosses] = {}
    try:
        with np.load(evaluation_file(run, step), allow_pickle=False) as found:
            metrics = list(map(str, found["metrics"])) if "metrics" in found else []
            for number, name in enumerate(found["names"]):
                losses, weights, *sums = found[str(number)]
                sets[str(name)] = DocumentLosses(losses, weights, dict(zip(metrics, sums, strict=True)))
            return sets
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return {}


def gain_of(run: RunDir, losses: Mapping[str, Any]) -> Dict[str, Dict[str, Any]]:
    """Return the gain of each held-out set whose documents are known before the first step and at the last evaluation.

    Args:
        losses: (step, loss) of every evaluation by held-out set, from ``ftdist.track.report.heldout_losses``.

    Returns:
        For each set ``documents``, ``tokens``, and ``value``, ``low`` and ``high`` of the loss ``before`` and
        ``after``, and of its ``change`` (after minus before, of the same documents: negative if the model has gained).
        ``metrics`` has the same three of each metric by its name, such as ``accuracy``.
    """
    found: Dict[str, Dict[str, Any]] = {}
    for name, (before, after) in compared_evaluations(run, losses).items():
        tokens = before.weights
        both = sorted(before.metrics.keys() & after.metrics.keys())
        metrics = {metric: compared(before.metrics[metric], after.metrics[metric], tokens) for metric in both}
        found[name] = {"documents": int((tokens > 0).sum()), "tokens": int(tokens.sum()),
                       **compared(before.losses, after.losses, tokens), "metrics": metrics}  # fmt: skip
    return found


def evaluations_of(run: RunDir, losses: Mapping[str, Any]) -> Dict[str, List[Dict[str, Any]]]:
    """Return the numbers of each set at every evaluation whose documents are known, with their intervals.

    Args:
        losses: See ``gain_of``.

    Returns:
        For each set and evaluation ``step``, and ``value``, ``low`` and ``high`` of ``loss``, ``perplexity`` (the
        exponentials of those of the loss) and each metric, such as ``accuracy``.
    """
    steps = sorted({step for points in losses.values() for step, _ in points})
    found = {step: read_evaluation(run, step) for step in steps}
    return {name: _with_intervals({step: found[step][name] for step, _ in points if name in found[step]})
            for name, points in losses.items()}  # fmt: skip


def _with_intervals(evaluations: Mapping[int, DocumentLosses]) -> List[Dict[str, Any]]:
    """Return the numbers of one set, see ``evaluations_of``. Evaluations of the same documents share their draws."""
    alike: Dict[bytes, List[int]] = {}
    for step, one in evaluations.items():
        alike.setdefault(one.weights.tobytes(), []).append(step)
    rows: Dict[int, Dict[str, Any]] = {}
    for steps in alike.values():
        measures = [(step, name, sums) for step, one in ((step, evaluations[step]) for step in steps)
                    for name, sums in {"loss": one.losses, **one.metrics}.items()]  # fmt: skip
        intervals = intervals_of(np.stack([sums for *_, sums in measures]), evaluations[steps[0]].weights)
        for (step, name, _), interval in zip(measures, intervals, strict=True):
            rows.setdefault(step, {"step": step})[name] = asdict(interval)
    for row in rows.values():
        with np.errstate(over="ignore"):
            row["perplexity"] = {part: float(np.exp(value)) for part, value in row["loss"].items()}
    return [rows[step] for step in sorted(rows)]


def compared_evaluations(run: RunDir, losses: Mapping[str, Any]) -> Dict[str, Tuple[DocumentLosses, DocumentLosses]]:
    """Return the first and the last evaluation of each set, if both are of the same documents. See ``gain_of``."""
    found = {}
    for name, points in losses.items():
        (first, _), (last, _) = points[0], points[-1]
        before, after = (read_evaluation(run, step).get(name) for step in (first, last))
        if first == 0 < last and before and after and before.weights.tolist() == after.weights.tolist():
            found[name] = before, after
    return found


def compared(before: np.ndarray, after: np.ndarray, tokens: np.ndarray) -> Dict[str, Any]:
    """Return the interval of sums over documents before and after, and of their change."""
    sums = {"before": before, "after": after, "change": after - before}
    return {part: asdict(interval_of(values, tokens)) for part, values in sums.items()}


def interval_of(losses: np.ndarray, tokens: np.ndarray, seed: int = 0) -> Interval:
    """Return a mean over tokens, which is a ratio of sums over documents, with its percentile bootstrap interval.

    (Efron and Tibshirani 1993, An Introduction to the Bootstrap, section 13.3.) For the difference of two models,
    ``losses`` are the differences of the same documents.

    Args:
        losses: [documents] sums over the tokens of each document, of losses or of a metric.
        tokens: [documents] numbers of tokens. Documents without any are left out.
    """
    return intervals_of(losses[None], tokens, seed)[0]


def intervals_of(sums: np.ndarray, tokens: np.ndarray, seed: int = 0) -> List[Interval]:
    """Return the interval of each of several measures of the same documents. See ``interval_of``.

    Args:
        sums: [measures, documents].
    """
    sums, tokens = sums[:, tokens > 0], tokens[tokens > 0]
    added = np.vstack([sums, tokens]).T
    with np.errstate(invalid="ignore"):  # a loss that is not finite gives no interval
        drawn = np.concatenate([times @ added for times in _resampled(len(tokens), np.random.default_rng(seed))])
        ratios = drawn[:, :-1] / drawn[:, -1:]
        means = sums.sum(1) / tokens.sum()
    tail = (1 - LEVEL) / 2
    found = []
    for mean, values in zip(means, ratios.T, strict=True):
        known = len(tokens) > 1 and np.isfinite(values).all()
        low, high = np.quantile(values, (tail, 1 - tail)) if known else (np.nan, np.nan)
        found.append(Interval(float(mean), float(low), float(high)))
    return found


def _resampled(documents: int, draw: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield how often each document is drawn, [draws, documents], ``RESAMPLES`` draws in all."""
    left, most = RESAMPLES, max(1, CHUNK // documents)
    while left:
        number = min(left, most)
        drawn = draw.integers(0, documents, (number, documents)) + documents * np.arange(number)[:, None]
        left -= number
        yield np.bincount(drawn.ravel(), minlength=number * documents).reshape(number, documents).astype(np.float64)


def forgets_too_much(
    gain: Mapping[str, Mapping[str, Any]], curve: Optional[Tuple[int, float, float]], lr: float
) -> Optional[str]:
    """Return a warning if forgetting has outrun gain, else None.

    This is the case if KL(base ‖ now) minus two standard errors is larger than the fall of the loss over all held-out
    sets. Both are in nats per token: the model has then lost more on the texts of the base model than it has gained.

    Args:
        gain: From ``gain_of``.
        curve: Step, divergence and error of the last evaluation.
        lr: ``optim.lr``.
    """
    tokens = sum(part["tokens"] for part in gain.values())
    if not tokens or curve is None:
        return None
    gained = -sum(part["change"]["value"] * part["tokens"] for part in gain.values()) / tokens
    _, kl, error = curve
    if not kl - 2 * error > gained:
        return None
    return (f"The model forgets more than it gains: KL(base ‖ now) is {kl:.4f} ± {error:.4f} nats per token, and the "
            f"held-out loss changed by {-gained:+.4f}. Train with a lower rate: optim.lr={lr / 3:.1e}")  # fmt: skip
