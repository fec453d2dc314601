"""A chunk of records → token ids, in one worker: read, render, tokenise, fit to max_seq_len."""

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Dict, FrozenSet, Iterator, List, Tuple

import numpy as np

from ftdist.config.schema import Format, LongDocuments
from ftdist.data.records import Document, read_record
from ftdist.data.render import Rendered, Renderer, Tokenised, render, tokenise
from ftdist.data.sources import Located

NUM_PROMPTS = 8
"""Held-out questions kept with a set, to be answered at evaluations."""
STOP_WITHIN = 3
"""Trained tokens at the end of a document among which its stop token stands."""
TEXT_PROMPT = 32
"""Tokens of plain text that are given as the prompt."""

HashedPrompt = Tuple[int, Dict[str, Any]]


@dataclass(frozen=True)
class Task:
    """What a source's records are made into."""

    format: Format
    renderer: Renderer
    max_seq_len: int
    long_documents: LongDocuments
    stop_ids: FrozenSet[int]
    heldout_below: int
    """Documents whose hash is below this are held out: prompts are made of them. 2^64: all, 0: none."""


@dataclass
class Encoded:
    """What a chunk became; documents stand in the order of the records."""

    ids: np.ndarray
    """[tokens] int32, all documents after each other."""
    trained: np.ndarray
    """[tokens] uint8."""
    lengths: np.ndarray
    """[documents] int64."""
    num_trained: np.ndarray
    """[documents] int64."""
    hashes: np.ndarray
    """[documents] uint64, of the rendered text."""
    stops: np.ndarray
    """[documents] int32: the stop token that ends what is trained, −1 where none does."""
    counts: Dict[str, int] = field(default_factory=dict)
    """read, truncated, split, and ``dropped: <why>``."""
    prompts: List[HashedPrompt] = field(default_factory=list)
    """Of the held-out documents with the smallest hashes."""


def encode(task: Task, chunk: List[Located]) -> Encoded:
    """Encode a chunk of records.

    Raises:
        DataError: names the record that is wrong.
    """
    documents = [read_record(location, record, task.format) for location, record in chunk]
    rendered = [render(document, task.renderer) for document in documents]
    counts = Counter({"read": len(chunk)})
    pieces: List[Tokenised] = []
    hashes: List[int] = []
    prompts: List[HashedPrompt] = []
    for document, text, tokens in zip(documents, rendered, tokenise(rendered, task.renderer), strict=True):
        digest = content_hash(text.text)
        kept = list(_fit(tokens, task, counts))
        if not kept:
            continue
        pieces += kept
        hashes += [digest] * len(kept)
        if digest < task.heldout_below:
            prompts += [(digest, prompt) for prompt in _prompt(document, text, kept[0], task)]
    lengths = np.array([len(piece.ids) for piece in pieces], dtype=np.int64)
    return Encoded(
        ids=np.concatenate([piece.ids for piece in pieces] or [np.empty(0, np.int32)]),
        trained=np.concatenate([piece.trained for piece in pieces] or [np.empty(0, np.uint8)]),
        lengths=lengths,
        num_trained=np.array([piece.trained.sum(dtype=np.int64) for piece in pieces], dtype=np.int64),
        hashes=np.array(hashes, dtype=np.uint64),
        stops=np.array([_stop(piece, task.stop_ids) for piece in pieces], dtype=np.int32),
        counts=dict(+counts),
        prompts=smallest(prompts),
    )


def content_hash(text: str) -> int:
    """64 bits of the rendered text, evenly spread: equal documents fall on the same side of any share."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def smallest(prompts: List[HashedPrompt]) -> List[HashedPrompt]:
    """The prompts to keep: chosen by hash, so that they are spread over the set and do not depend on its order."""
    unique = dict(prompts)
    return sorted(unique.items(), key=lambda item: item[0])[:NUM_PROMPTS]


def _fit(tokens: Tokenised, task: Task, counts: "Counter[str]") -> Iterator[Tokenised]:
    """Cut a document to max_seq_len; count what becomes of it. What is trained is counted after the cut."""
    limit, is_long = task.max_seq_len, len(tokens.ids) > task.max_seq_len
    if not tokens.trained.any():
        counts["dropped: nothing to train"] += 1
    elif not is_long:
        yield tokens
    elif task.long_documents is LongDocuments.drop:
        counts["dropped: longer than max_seq_len"] += 1
    elif task.long_documents is LongDocuments.truncate:
        counts["truncated"] += 1
        if tokens.trained[:limit].any():
            yield _piece(tokens, 0, limit)
        else:
            counts["dropped: nothing to train after truncation"] += 1
    else:
        counts["split"] += 1
        pieces = [_piece(tokens, start, limit) for start in range(0, len(tokens.ids), limit)]
        useful = [piece for piece in pieces if piece.trained.any()]
        counts["dropped: piece of a split document with nothing to train"] += len(pieces) - len(useful)
        yield from useful


def _piece(tokens: Tokenised, start: int, limit: int) -> Tokenised:
    trained = tokens.trained[start : start + limit].copy()
    trained[0] = 0
    return Tokenised(tokens.ids[start : start + limit], trained, tokens.answer_start - start)


def _stop(piece: Tokenised, stop_ids: FrozenSet[int]) -> int:
    # With all tokens trained, what the template writes after the last stop token (a line break) is trained too.
    ending = piece.ids[np.flatnonzero(piece.trained)[-STOP_WITHIN:]]
    return next((int(token) for token in ending[::-1] if int(token) in stop_ids), -1)


def _prompt(document: Document, rendered: Rendered, piece: Tokenised, task: Task) -> Iterator[Dict[str, Any]]:
    """What the model is given to answer: everything before the last answer, or how a text begins."""
    tokenizer = task.renderer.tokenizer
    start = piece.answer_start
    if rendered.spans[-1][0] <= len(task.renderer.bos):  # plain text, or a chat that is trained whole
        start = min(TEXT_PROMPT, len(piece.ids) // 2)
        question = tokenizer.decode(piece.ids[:start], skip_special_tokens=True)
        reference = tokenizer.decode(piece.ids[start:], skip_special_tokens=True)
    else:
        users = [message["content"] for message in document.messages if message["role"] == "user"]
        question = users[-1] if users else document.prompt
        begin, end = rendered.spans[-1]
        reference = rendered.text[begin:end]
        for stop in (tokenizer.eos_token, *tokenizer.all_special_tokens):
            reference = reference.removesuffix(stop)
    if 0 < start < len(piece.ids):
        prompt = piece.ids[:start].tolist()
        text = tokenizer.decode(prompt)
        yield {"prompt_ids": prompt, "prompt_text": text, "question": question, "reference": reference}
