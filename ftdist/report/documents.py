"""The held-out documents whose loss changed most, with the beginning of their texts."""

from typing import Any, Dict, List, Mapping

import numpy as np

from ftdist.base.errors import FtdistError
from ftdist.config.schema import RunConfig
from ftdist.data.loader import PreparedSet, open_set
from ftdist.data.tokenizer import load_tokenizer
from ftdist.run.identity import recorded_folder
from ftdist.run.prepared import is_ready
from ftdist.run.rundir import RunDir
from ftdist.track.gain import compared_evaluations

SHOWN = 15
"""Largest number of documents, or words, of each set in a list."""
MIN_TOKENS = 8
"""Documents with fewer trained tokens are not listed: the loss of a few tokens says little."""
SHOWN_TOKENS = 60
"""Number of tokens of a document whose text is shown."""

Rows = List[Dict[str, Any]]


def changed_documents(run: RunDir, config: RunConfig, losses: Mapping[str, Any]) -> Dict[str, Dict[str, Rows]]:
    """Return the documents that ``gained`` most (the largest fall first) and those that ``lost`` most, by set.

    Args:
        losses: (step, loss) of every evaluation by held-out set, as for ``ftdist.track.gain.gain_of``.

    Returns:
        For each document ``text``, ``tokens`` (trained ones), and ``before``, ``after`` and ``change`` in nats per
        token. Without the prepared data or the tokenizer, it is empty.
    """
    pairs, found = compared_evaluations(run, losses), {}
    folder = recorded_folder(run, config)
    if not pairs or not is_ready(folder):
        return {}
    try:
        tokenizer = load_tokenizer(config)
        for name, (before, after) in pairs.items():
            dataset = open_set(folder, name)
            tokens = before.weights
            if tokens.tolist() == trained_tokens(dataset).tolist():
                means = np.stack([before.losses, after.losses]) / np.maximum(tokens, 1)
                order = [int(d) for d in np.argsort(means[1] - means[0], kind="stable") if tokens[d] >= MIN_TOKENS]
                chosen = {
                    "gained": [d for d in order if means[1, d] < means[0, d]][:SHOWN],
                    "lost": [d for d in reversed(order) if means[1, d] > means[0, d]][:SHOWN],
                }
                found[name] = {kind: [_row(dataset, tokenizer, d, int(tokens[d]), *means[:, d].tolist()) for d in which]
                               for kind, which in chosen.items()}  # fmt: skip
    except (FtdistError, OSError, ValueError):  # the data or the tokenizer was removed
        return {}
    return found


def trained_tokens(dataset: PreparedSet) -> np.ndarray:
    """Return the number of trained tokens of each document, in the order of the rows. The first token has no loss."""
    counted = np.array(dataset.trained, dtype=np.int64)
    counted[dataset.offsets[:-1]] = 0
    sums = np.concatenate([[0], np.cumsum(counted)])
    each: np.ndarray = np.diff(sums[dataset.offsets])[dataset.row_docs]
    return each


def _row(dataset: PreparedSet, tokenizer: Any, place: int, tokens: int, before: float, after: float) -> Dict[str, Any]:
    document = dataset.row_docs[place]
    begin, end = (int(dataset.offsets[document + more]) for more in (0, 1))
    text = tokenizer.decode(dataset.tokens[begin : min(end, begin + SHOWN_TOKENS)].tolist())
    cut = "…" if end - begin > SHOWN_TOKENS else ""
    return {"text": text + cut, "tokens": tokens, "before": before, "after": after, "change": after - before}
