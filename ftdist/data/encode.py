"""Encode records as token ids. One call encodes a chunk of records, in one worker process.

A record is read into a document, rendered as text, tokenized, and cut to ``max_seq_len`` tokens. The tokenizer is
called in ``ftdist.data.tokenise``.
"""

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Dict, FrozenSet, Iterator, List, Mapping, Tuple

import numpy as np

from ftdist.config.data import BadRecords, Format, HeldoutBy, LongDocuments, Reasoning
from ftdist.data.bad_records import BadRecord, read_good
from ftdist.data.records import Document, read_record
from ftdist.data.render import Rendered, Renderer, render
from ftdist.data.roles import with_roles
from ftdist.data.text_files import LocatedRecord
from ftdist.data.tokenise import Tokenised, tokenise

NUM_PROMPTS = 8
"""Maximum number of held-out prompts stored with a set. The model answers them at each evaluation."""
STOP_WITHIN = 3
"""The stop token is searched for in this many trained tokens at the end of a document."""
TEXT_PROMPT = 32
"""Maximum length of the prompt that is made from a plain text, in tokens."""

NOTE = "note: "
"""Prefix of counts of records about which the user should know something."""

HashedPrompt = Tuple[int, Dict[str, Any]]
"""``(hash of the document, prompt)``. The prompt has the fields that ``_make_prompt`` writes."""


@dataclass(frozen=True)
class EncodeSettings:
    """How the records of one source are encoded."""

    format: Format
    fields: Mapping[str, str]
    """The setting ``fields`` of the source."""
    reasoning: Reasoning
    bad_records: BadRecords
    heldout_by: HeldoutBy
    renderer: Renderer
    max_seq_len: int
    long_documents: LongDocuments
    stop_ids: FrozenSet[int]
    """Ids of all special tokens. Each of them counts as a stop token if it ends the trained tokens of a document."""
    heldout_below: int
    """Documents with a hash below this value are held out, and prompts are made from them. The range of hashes is 0 to
    2^64 - 1: 0 holds out no document, 2^64 holds out all."""


@dataclass
class Encoded:
    """Encoded documents, in the order of their records."""

    ids: np.ndarray
    """[tokens] int32: token ids of all documents, one document after another."""
    trained: np.ndarray
    """[tokens] uint8: 1 for trained tokens, 0 for the others."""
    roles: np.ndarray
    """[tokens] uint8: roles of the tokens of held-out documents (``ftdist.data.roles.ROLES``), 0 for the others."""
    lengths: np.ndarray
    """[documents] int64: number of tokens."""
    num_trained: np.ndarray
    """[documents] int64: number of trained tokens."""
    hashes: np.ndarray
    """[documents] uint64: hash of the record's content, or of the rendered text (``data.heldout_by``)."""
    stops: np.ndarray
    """[documents] int32: id of the stop token at the end of the trained tokens, or -1 if there is none."""
    counts: Dict[str, int] = field(default_factory=dict)
    """Numbers by outcome: ``read`` records; ``truncated``, ``split`` and ``dropped: <reason>`` documents; chats that
    became several documents (``split chats``), these documents (``documents of split chats``), and the tokens of all of
    them but the last one (``tokens of split chats``); records by ``note: <text>``."""
    prompts: List[HashedPrompt] = field(default_factory=list)
    """Prompts made from the held-out documents with the smallest hashes."""
    bad: List[BadRecord] = field(default_factory=list)
    """Records that were dropped because they are bad."""


def encode(settings: EncodeSettings, chunk: List[LocatedRecord]) -> Encoded:
    """Encode a chunk of records.

    Raises:
        DataError: A record is bad, and bad records are not dropped. The message names its location.
    """
    good, bad = read_good(chunk, partial(read_and_render, settings), settings.bad_records)
    # All documents of a record have the same hash, so they stay together.
    by_content = settings.heldout_by is HeldoutBy.content
    digests = [document.content_hash() if by_content else content_hash("".join(text.text for text in texts))
               for document, texts in good]  # fmt: skip
    rendered = [[with_roles(document, text, settings.renderer) for text in texts] if digest < settings.heldout_below
                else texts for (document, texts), digest in zip(good, digests, strict=True)]  # fmt: skip
    tokenised = iter(tokenise([text for texts in rendered for text in texts], settings.renderer))
    counts = Counter({"read": len(chunk)})
    pieces: List[Tokenised] = []
    hashes: List[int] = []
    prompts: List[HashedPrompt] = []
    for (document, _), texts, digest in zip(good, rendered, digests, strict=True):
        _count_documents(texts, counts)
        last: List[HashedPrompt] = []
        for text in texts:
            tokens = next(tokenised)
            kept = list(_cut_to_length(tokens, settings, counts))
            pieces += kept
            hashes += [digest] * len(kept)
            counts["tokens of split chats"] += len(tokens.ids) if text is not texts[-1] else 0
            if kept and digest < settings.heldout_below:
                last = [(digest, prompt) for prompt in _make_prompt(document, text, kept[0], settings)]
        prompts += last
    lengths = np.array([len(piece.ids) for piece in pieces], dtype=np.int64)
    return Encoded(
        ids=np.concatenate([piece.ids for piece in pieces] or [np.empty(0, np.int32)]),
        trained=np.concatenate([piece.trained for piece in pieces] or [np.empty(0, np.uint8)]),
        roles=np.concatenate([piece.roles for piece in pieces] or [np.empty(0, np.uint8)]),
        lengths=lengths,
        num_trained=np.array([piece.trained.sum(dtype=np.int64) for piece in pieces], dtype=np.int64),
        hashes=np.array(hashes, dtype=np.uint64),
        stops=np.array([_stop_token(piece, settings.stop_ids) for piece in pieces], dtype=np.int32),
        counts=dict(+counts),
        prompts=smallest_prompts(prompts),
        bad=bad,
    )


def _count_documents(texts: List[Rendered], counts: "Counter[str]") -> None:
    """Count the documents that a record became, and their notes."""
    counts["split chats"] += len(texts) > 1
    counts["documents of split chats"] += len(texts) if len(texts) > 1 else 0
    for note in {note for text in texts for note in text.notes}:
        counts[f"{NOTE}{note}"] += 1


def read_and_render(settings: EncodeSettings, location: str, record: Any) -> Tuple[Document, List[Rendered]]:
    """Return a record, and the documents that are made of it.

    Raises:
        DataError: The record is bad.
    """
    document = read_record(location, record, settings.format, settings.fields, settings.reasoning)
    return document, render(document, settings.renderer)


def content_hash(text: str) -> int:
    """Return a 64-bit hash of a text.

    Equal texts have equal hashes, so equal documents are always in the same set. Hashes are uniformly distributed, so a
    share of the range selects about the same share of the documents.
    """
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def smallest_prompts(prompts: List[HashedPrompt]) -> List[HashedPrompt]:
    """Return the ``NUM_PROMPTS`` prompts with the smallest hashes.

    The choice does not depend on the order of the documents, and it is spread over the whole set.
    """
    unique = dict(prompts)
    return sorted(unique.items(), key=lambda item: item[0])[:NUM_PROMPTS]


def _cut_to_length(tokens: Tokenised, settings: EncodeSettings, counts: "Counter[str]") -> Iterator[Tokenised]:
    """Yield the pieces of a document that are kept, each of at most ``max_seq_len`` tokens, and count the outcome.

    A document is dropped if nothing in it is trained after the cut.
    """
    limit, is_long = settings.max_seq_len, len(tokens.ids) > settings.max_seq_len
    if not tokens.trained.any():
        counts["dropped: nothing to train"] += 1
    elif not is_long:
        yield tokens
    elif settings.long_documents is LongDocuments.drop:
        counts["dropped: longer than max_seq_len"] += 1
    elif settings.long_documents is LongDocuments.truncate:
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
    part = slice(start, start + limit)
    trained = tokens.trained[part].copy()
    trained[0] = 0
    return Tokenised(tokens.ids[part], trained, tokens.roles[part], tokens.answer_start - start)


def _stop_token(piece: Tokenised, stop_ids: FrozenSet[int]) -> int:
    # With data.train_on=all, the text that the template writes after the last stop token (a line break) is trained too.
    ending = piece.ids[np.flatnonzero(piece.trained)[-STOP_WITHIN:]]
    return next((int(token) for token in ending[::-1] if int(token) in stop_ids), -1)


def _make_prompt(
    document: Document, rendered: Rendered, piece: Tokenised, settings: EncodeSettings
) -> Iterator[Dict[str, Any]]:
    """Yield one prompt with its reference answer, or nothing if there is no text before or after the cut.

    The prompt of a chat is everything before the last answer. The prompt of a plain text is its beginning.
    """
    tokenizer = settings.renderer.tokenizer
    start = piece.answer_start
    if rendered.spans[-1][0] <= len(settings.renderer.bos):  # plain text, or a chat in which all tokens are trained
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
