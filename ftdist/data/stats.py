"""What meta.json says about prepared data."""

from dataclasses import asdict
from typing import Any, Dict, List, Tuple

import numpy as np

from ftdist.base.errors import DataError
from ftdist.config.schema import RunConfig
from ftdist.data.store import SetWriter

SAMPLE_TOKENS = 256
DROPPED = "dropped: "


def source_stats(
    writer: SetWriter, source: int, counts: Dict[str, int], weight: float, items: np.ndarray
) -> Dict[str, Any]:
    """One source of a set.

    Args:
        counts: as counted by the workers.
        items: documents of the set's rows, repeated or left out by weight.
    """
    own = writer.column("source") == source
    lengths = writer.column("lengths")
    of_epoch = lengths[items][writer.column("source")[items] == source].sum()
    return {
        "documents": counts.get("read", 0),
        "kept": int(own.sum()),
        "heldout": counts.get("heldout", 0),
        "tokens": int(lengths[own].sum()),
        "trained_tokens": int(writer.column("num_trained")[own].sum()),
        "truncated": counts.get("truncated", 0),
        "split": counts.get("split", 0),
        "dropped": {why[len(DROPPED) :]: n for why, n in sorted(counts.items()) if why.startswith(DROPPED)},
        "weight": weight,
        "share": float(of_epoch / max(lengths[items].sum(), 1)),
    }


def set_stats(writer: SetWriter, items: np.ndarray, num_rows: int, max_seq_len: int, tokenizer: Any) -> Dict[str, Any]:
    """One set: what an epoch of it holds, and the stop token that most documents end what is trained with."""
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


def settings(config: RunConfig) -> Dict[str, Any]:
    """The config that the data was made with, in plain values."""
    data = asdict(config.data, dict_factory=lambda pairs: {key: getattr(value, "name", value) for key, value in pairs})
    return {"data": data, "tokenizer": config.model.tokenizer, "new_special_tokens": config.model.new_special_tokens}


def sample(writer: SetWriter, tokenizer: Any) -> List[List[Any]]:
    """A document of ordinary length as ``[text, trained]`` of its tokens."""
    tokens, trained, offsets = writer.read()
    ordinary = np.flatnonzero(np.diff(offsets[:1001]) <= SAMPLE_TOKENS)
    number = int(ordinary[0]) if len(ordinary) else 0
    span = slice(int(offsets[number]), min(int(offsets[number + 1]), int(offsets[number]) + SAMPLE_TOKENS))
    return token_texts(tokenizer, tokens[span], trained[span])


def token_texts(tokenizer: Any, ids: np.ndarray, trained: np.ndarray) -> List[List[Any]]:
    """``[text, trained]`` of each token; tokens that only together make a character stay together."""
    return [[text, flag] for text, flag, _ in token_pieces(tokenizer, ids, trained)]


def token_pieces(tokenizer: Any, ids: np.ndarray, trained: np.ndarray) -> List[Tuple[str, int, slice]]:
    """(text, trained, which tokens) of each token, or of tokens that only together make a character."""
    shown: List[Tuple[str, int, slice]] = []
    start = 0
    for number, flag in enumerate(trained.tolist()):
        text = tokenizer.decode(ids[start : number + 1].tolist(), clean_up_tokenization_spaces=False)
        last = number + 1 == len(ids) or trained[number + 1] != flag
        if text.endswith("\ufffd") and not last and number + 1 - start < 8:
            continue
        shown.append((text, int(flag), slice(start, number + 1)))
        start = number + 1
    return shown


def warnings(config: RunConfig, meta: Dict[str, Any], hidden: int) -> List[str]:
    """What is worth a second look before training.

    Args:
        hidden: training documents that are also in a held-out source.
    """
    found = []
    for name, stats in meta["sets"].items():
        if stats["documents_with_stop"] == 0:
            found.append(
                f"no stop token is trained in the set '{name}': the model will not learn to end its answers. "
                "Let the template write a special token after each answer (inside its generation block), and add that "
                "token with model.new_special_tokens where the tokenizer lacks it"
            )
    for name, stats in meta["sources"].items():
        if stats["kept"] + stats["heldout"] == 0:
            found.append(f"every document of the source '{name}' was dropped: {stats['dropped']}")
    for name, source in {**config.data.sources, **config.data.heldout}.items():
        if source.hub and not source.revision:
            found.append(
                f"the hub data set of '{name}' has no revision: what was read today stays in the cache, and "
                "others may read something else. Set revision to a commit"
            )
    if hidden:
        found.append(f"{hidden:,} training documents are also in a held-out source: its loss will look too good")
    return found


def check_not_empty(name: str, writer: SetWriter, counts: List[Dict[str, int]]) -> None:
    """Raises:
    DataError: nothing in a set is trained; says what became of its documents.
    """
    if len(writer.kept()):
        return
    total: Dict[str, int] = {}
    for count in counts:
        for what, number in count.items():
            total[what] = total.get(what, 0) + number
    became = ", ".join(f"{number:,} {what}" for what, number in sorted(total.items())) or "no documents"
    if name == "heldout":
        raise DataError(
            f"data.heldout_share held out no document ({became})",
            "at least one held-out document",
            "data.heldout_share=0 to do without, or a source of its own in data.heldout",
        )
    raise DataError(
        f"nothing in the set '{name}' would be trained ({became})",
        "at least one trained token",
        "look at the answers in the data, data.train_on, and data.max_seq_len",
    )
