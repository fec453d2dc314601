"""The words of the held-out documents whose loss changed most, and how rare they are in general texts."""

import json
from collections import Counter, defaultdict
from operator import itemgetter
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Tuple

import numpy as np

from ftdist.base.errors import FtdistError
from ftdist.config.schema import RunConfig
from ftdist.data.loader import PreparedSet, open_set
from ftdist.data.tokenizer import load_tokenizer
from ftdist.data.words import TokenWord, kept_limits, token_words, words_of
from ftdist.report.documents import SHOWN, trained_tokens
from ftdist.report.roles import by_role
from ftdist.run.identity import recorded_folder
from ftdist.run.prepared import GENERAL_TEXTS, is_ready
from ftdist.run.rundir import RunDir
from ftdist.track.gain import compared_evaluations
from ftdist.track.token_losses import read_token_losses

MIN_TIMES = 5
"""Words that occur less often are not listed by their change each time."""
LONGEST = 40
"""Number of characters of a word that are shown."""
RARITIES = {"10 times or more": 10, "2 to 9 times": 2, "once": 1, "never": 0}
"""Smallest number of times that a word occurs in the general texts, by the name of the group."""
NO_WORD = "no word"

Rows = List[Dict[str, Any]]


class _Sums(NamedTuple):
    """Sums over the trained tokens of some words."""

    times: int
    tokens: int
    before: float
    after: float


Words = Dict[Tuple[str, bool], _Sums]
"""By the text of a word and whether it is one (``TokenWord``)."""


def changed_words(run: RunDir, config: RunConfig, losses: Mapping[str, Any]) -> Dict[str, Any]:
    """Return the words of each held-out set whose loss changed most between the first and the last evaluation.

    Args:
        losses: (step, loss) of every evaluation by held-out set, as for ``ftdist.track.gain.gain_of``.

    Returns:
        ``sets`` by name, ``min_times``, and ``missing``: why there are no sets, else empty. A set has the lists of
        words ``gained`` and ``lost`` (by the change of the sum of their losses), ``gained_each`` and ``lost_each`` (by
        that divided by the number of times that they occur), ``rarity`` (all tokens, by how often their words occur in
        the general texts), ``roles`` (from ``by_role``), the number of ``documents`` that were read, and that of
        ``all`` documents.
    """
    pairs, folder = compared_evaluations(run, losses), recorded_folder(run, config)
    if not pairs:
        return _without("there are no held-out losses before the first step and after it")
    if not is_ready(folder):
        return _without("the prepared data is no longer in the cache")
    found: Dict[str, Any] = {}
    try:
        tokenizer, general = load_tokenizer(config), _general_counts()
        for name, (compared, _) in pairs.items():
            dataset, points = open_set(folder, name), losses[name]
            limits = kept_limits(dataset)
            before, after = (read_token_losses(run, points[place][0]).get(name, np.zeros(0)) for place in (0, -1))
            same = compared.weights.tolist() == trained_tokens(dataset).tolist()
            if same and limits[-1] and len(before) == len(after) == limits[-1]:
                words = _add_up(dataset, tokenizer, limits, before, after)
                found[name] = {**_most_changed(words), "rarity": _by_rarity(words, general),
                               "roles": by_role(dataset, limits, before, after),
                               "documents": len(limits) - 1, "all": len(dataset.row_docs)}  # fmt: skip
    except (FtdistError, OSError, ValueError):
        return _without("the prepared data or the tokenizer cannot be read")
    if not found:
        return _without("the evaluations kept no losses of the tokens of this data")
    return {"sets": found, "min_times": MIN_TIMES, "missing": ""}


def _without(reason: str) -> Dict[str, Any]:
    return {"sets": {}, "min_times": MIN_TIMES, "missing": reason}


def _add_up(dataset: PreparedSet, tokenizer: Any, limits: np.ndarray, before: np.ndarray, after: np.ndarray) -> Words:
    """Return the sums of each word.

    Args:
        limits: From ``kept_limits``.
        before: [tokens] losses at the first evaluation.
        after: The same at the last one.
    """
    sums: Dict[Tuple[str, bool], List[Any]] = defaultdict(lambda: [0, 0, 0.0, 0.0])
    spans = [slice(*dataset.offsets[[one, one + 1]]) for one in dataset.row_docs[: len(limits) - 1]]
    documents = token_words(tokenizer, (dataset.tokens[span] for span in spans))
    for span, begin, words in zip(spans, limits[:-1], documents, strict=True):
        trained = np.flatnonzero(dataset.trained[span])
        losses = np.stack([before[begin + trained], after[begin + trained]], axis=1).tolist()
        last: Optional[TokenWord] = None
        for token, (old, new) in zip(trained.tolist(), losses, strict=True):
            word = words[token]
            found = sums[word.text, word.is_word]
            for place, value in enumerate((word != last, 1, old, new)):
                found[place] += value
            last = word
    return {key: _Sums(*values) for key, values in sums.items()}


def _most_changed(words: Words) -> Dict[str, Rows]:
    """Return the lists of the words that gained and lost most, with the largest change first."""
    rows = [{"word": text if len(text) <= LONGEST else f"{text[:LONGEST]}…", **_row(sums),
             "total": sums.after - sums.before, "each": (sums.after - sums.before) / sums.times}
            for (text, is_word), sums in sorted(words.items()) if is_word]  # fmt: skip
    found = {}
    for ending, key, least in (("", "total", 1), ("_each", "each", MIN_TIMES)):
        often = [row for row in rows if row["times"] >= least]
        found[f"gained{ending}"] = sorted((row for row in often if row[key] < 0), key=itemgetter(key))[:SHOWN]
        lost = sorted((row for row in often if row[key] > 0), key=itemgetter(key), reverse=True)
        found[f"lost{ending}"] = lost[:SHOWN]
    return found


def _by_rarity(words: Words, general: Mapping[str, int]) -> Rows:
    """Return the sums of the words of each of ``RARITIES``, and of all that is no word."""
    groups: Dict[str, List[_Sums]] = {group: [] for group in (*RARITIES, NO_WORD)}
    for (text, is_word), sums in words.items():
        times = general.get(text.casefold(), 0)
        group = next(name for name, least in RARITIES.items() if times >= least) if is_word else NO_WORD
        groups[group].append(sums)
    return [{"group": group, "words": len(found), **_row(_Sums(*map(sum, zip(*found, strict=True))))}
            for group, found in groups.items() if found]  # fmt: skip


def _row(sums: _Sums) -> Dict[str, Any]:
    """Return counts, and the losses before and after in nats per token."""
    before, after = sums.before / sums.tokens, sums.after / sums.tokens
    return {"times": sums.times, "tokens": sums.tokens, "before": before, "after": after, "change": after - before}


def _general_counts() -> Mapping[str, int]:
    """Return how often each word occurs in the built-in general texts, whatever its case."""
    records = map(json.loads, GENERAL_TEXTS.read_text(encoding="utf-8").splitlines())
    texts = [text for one in records for kind, text in one.items() if kind != "kind"]
    return Counter(word.casefold() for text in texts for word in words_of(text))
