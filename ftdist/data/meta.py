"""The content of ``meta.json``: settings, statistics, a sample document, and warnings about prepared data."""

from dataclasses import asdict
from typing import Any, Dict, List

import numpy as np

from ftdist.base.counts import count
from ftdist.base.errors import DataError
from ftdist.config.schema import RunConfig
from ftdist.data.bad_records import DROPPED_BAD
from ftdist.data.encode import NOTE
from ftdist.data.set_writer import SetWriter
from ftdist.data.token_text import split_tokens
from ftdist.run.prepared import BAD_RECORDS

SAMPLE_TOKENS = 256
"""Maximum length of the sample document in tokens."""
DROPPED = "dropped: "


def source_stats(
    writer: SetWriter, source: int, counts: Dict[str, int], weight: float, items: np.ndarray
) -> Dict[str, Any]:
    """Return the statistics of one source in a set.

    Args:
        writer: The set.
        source: Number of the source.
        counts: Number of the source's documents by outcome: those of ``Encoded.counts``, and ``heldout``.
        weight: Passes over the source in one epoch.
        items: Numbers of the documents in the rows of the set. Weights can repeat or omit documents.
    """
    own = writer.column("source") == source
    lengths = writer.column("lengths")
    tokens_in_rows = lengths[items][writer.column("source")[items] == source].sum()
    return {
        "documents": counts.get("read", 0),
        "kept": int(own.sum()),
        "heldout": counts.get("heldout", 0),
        "tokens": int(lengths[own].sum()),
        "trained_tokens": int(writer.column("num_trained")[own].sum()),
        "truncated": counts.get("truncated", 0),
        "split": counts.get("split", 0),
        "split_chats": counts.get("split chats", 0),
        "documents_of_split_chats": counts.get("documents of split chats", 0),
        "tokens_of_split_chats": counts.get("tokens of split chats", 0),
        "notes": {note[len(NOTE) :]: n for note, n in sorted(counts.items()) if note.startswith(NOTE)},
        "dropped": {why[len(DROPPED) :]: n for why, n in sorted(counts.items()) if why.startswith(DROPPED)},
        "weight": weight,
        "share": float(tokens_in_rows / max(lengths[items].sum(), 1)),
    }


def set_stats(writer: SetWriter, items: np.ndarray, num_rows: int, max_seq_len: int, tokenizer: Any) -> Dict[str, Any]:
    """Return the statistics of one set: the content of its rows, and the most frequent stop token.

    Args:
        writer: The set.
        items: Numbers of the documents in the rows.
    """
    tokens = int(writer.column("lengths")[items].sum())
    stops, counts = np.unique(writer.column("stops")[items], return_counts=True)
    stopping = {int(stop): int(count) for stop, count in zip(stops, counts, strict=True) if stop >= 0}
    stop_id = max(stopping, key=lambda stop: stopping[stop]) if stopping else None
    return {
        "rows": num_rows,
        "documents": len(items),
        "tokens": tokens,
        "trained_tokens": int(writer.column("num_trained")[items].sum()),
        "packing_efficiency": tokens / max(num_rows * max_seq_len, 1),
        "stop_token": None if stop_id is None else tokenizer.convert_ids_to_tokens(stop_id),
        "stop_token_id": stop_id,
        "documents_with_stop": sum(stopping.values()),
    }


def tokenizer_stats(tokenizer: Any) -> Dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def data_settings(config: RunConfig) -> Dict[str, Any]:
    """Return the part of the config that the data was prepared with, as JSON values."""
    data = asdict(config.data, dict_factory=lambda pairs: {key: getattr(value, "name", value) for key, value in pairs})
    return {"data": data, "tokenizer": config.model.tokenizer, "new_special_tokens": config.model.new_special_tokens}


def sample_document(writer: SetWriter, tokenizer: Any) -> List[List[Any]]:
    """Return one document as ``[text, trained]`` of its tokens.

    It is the first of the first 1,000 documents with at most ``SAMPLE_TOKENS`` tokens. If all of them are longer, it is
    the beginning of the first document.
    """
    tokens, trained, offsets = writer.read()
    short = np.flatnonzero(np.diff(offsets[:1001]) <= SAMPLE_TOKENS)
    number = int(short[0]) if len(short) else 0
    span = slice(int(offsets[number]), min(int(offsets[number + 1]), int(offsets[number]) + SAMPLE_TOKENS))
    return [[text, flag] for text, flag, _ in split_tokens(tokenizer, tokens[span], trained[span])]


def preparation_warnings(config: RunConfig, meta: Dict[str, Any], num_leaked: int) -> List[str]:
    """Return what the user should check before training.

    Args:
        meta: The other content of ``meta.json``.
        num_leaked: Number of training documents that are also in a held-out source.
    """
    found = []
    for name, stats in meta["sets"].items():
        if stats["documents_with_stop"] == 0:
            found.append(
                f"no stop token is trained in the set '{name}': the model will not learn to end its answers. "
                "Use a chat template that writes a special token after each answer (inside its generation block). If "
                "the tokenizer does not have this token, add it with model.new_special_tokens"
            )
    for name, stats in meta["sources"].items():
        if stats["kept"] + stats["heldout"] == 0:
            found.append(f"every document of the source '{name}' was dropped: {stats['dropped']}")
    for name, stats in {**meta["sources"], **meta["heldout_sources"]}.items():
        records = count(stats["documents"], "record")
        found += [f"'{name}': in {n:,} of {records}, {note}" for note, n in stats["notes"].items()]
        bad = sum(number for why, number in stats["dropped"].items() if f"{DROPPED}{why}".startswith(DROPPED_BAD))
        if bad:
            found.append(
                f"{bad:,} of {records} of '{name}' {'is' if bad == 1 else 'are'} bad and dropped: {BAD_RECORDS} in the "
                "run directory and beside the prepared data lists them"
            )
    for name, source in {**config.data.sources, **config.data.heldout, **config.data.general}.items():
        if source.hub and not source.revision:
            found.append(
                f"the hub data set of '{name}' has no revision: the cache keeps the version that was read today, and "
                "other machines may read another one. Set revision to a commit"
            )
    if num_leaked:
        found.append(
            f"{num_leaked:,} training documents are also in a held-out source: the held-out loss will be too low"
        )
    return found


def check_not_empty(name: str, writer: SetWriter, counts: List[Dict[str, int]]) -> None:
    """Check that a set contains documents.

    Args:
        counts: Number of documents by outcome, for each source of the set.

    Raises:
        DataError: The set is empty. The message lists the outcomes.
    """
    if len(writer.kept()):
        return
    total: Dict[str, int] = {}
    for counted in counts:
        for what, number in counted.items():
            total[what] = total.get(what, 0) + number
    outcomes = ", ".join(f"{number:,} {what}" for what, number in sorted(total.items())) or "no documents"
    if name == "heldout":
        raise DataError(
            f"data.heldout_share held out no document ({outcomes})",
            "at least one held-out document",
            "data.heldout_share=0 to train without held-out data, or a separate source in data.heldout",
        )
    raise DataError(
        f"nothing in the set '{name}' would be trained ({outcomes})",
        "at least one trained token",
        "check the answers in the data, data.train_on and data.max_seq_len",
    )
