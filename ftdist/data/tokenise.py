"""Tokenize rendered documents and mark the trained tokens.

A token is trained if it overlaps a trained span. So the mask never depends on token ids (the padding token can be the
same as the stop token). A text is tokenized in one step, with one exception: it is cut where a token would hold both
the end of a prompt and the beginning of an answer. At inference the prompt is tokenized alone, so the model would never
see such a token.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, List, Sequence, Tuple

import numpy as np

from ftdist.data.chat_template import Span
from ftdist.data.render import Rendered, Renderer, RoleSpan


@dataclass(frozen=True)
class Tokenised:
    ids: np.ndarray
    """[n] int32."""
    trained: np.ndarray
    """[n] uint8: 1 for trained tokens. The first token is never trained, because nothing predicts it."""
    roles: np.ndarray
    """[n] uint8: numbers of their roles (``ftdist.data.roles.ROLES``), 0 where they are not known."""
    answer_start: int
    """Index of the first token of the last trained span, or n if there is none. In a piece of a split document, it can
    be outside the piece."""


def tokenise(rendered: List[Rendered], renderer: Renderer) -> List[Tokenised]:
    """Tokenize texts and mark the tokens that overlap the trained spans."""
    backend, made = renderer.tokenizer.backend_tokenizer, []
    encodings = backend.encode_batch([one.text for one in rendered], add_special_tokens=False)
    for encoding, one in zip(encodings, rendered, strict=True):
        tokens = _mark(encoding, len(one.text), one.spans, one.roles)
        if cuts := _cuts(encoding, one.spans):
            parts = _tokenise_in_parts(one, cuts, backend)
            if _decoded(parts, backend) == _decoded(tokens, backend):  # SentencePiece adds a space before each part
                tokens = parts
        tokens.trained[:1] = 0
        made.append(tokens)
    return made


def _cuts(encoding: Any, spans: List[Span]) -> List[int]:
    """Return the beginnings of those spans that begin inside a token."""
    tokens = [(start, encoding.char_to_token(start)) for start, _ in spans]
    return [start for start, token in tokens if token is not None and encoding.token_to_chars(token)[0] < start]


def _tokenise_in_parts(rendered: Rendered, cuts: List[int], backend: Any) -> Tokenised:
    """Tokenize the parts of a text between some positions, and join their tokens."""
    parts: List[Tokenised] = []
    for begin, end in pairwise([0, *cuts, len(rendered.text)]):
        spans = [(max(a, begin) - begin, min(b, end) - begin) for a, b in rendered.spans if a < end and b > begin]
        roles = [(max(a, begin) - begin, min(b, end) - begin, role) for a, b, role in rendered.roles
                 if a < end and b > begin]  # fmt: skip
        encoding = backend.encode(rendered.text[begin:end], add_special_tokens=False)
        parts.append(_mark(encoding, end - begin, spans, roles))
    arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in ("ids", "trained", "roles")}
    return Tokenised(**arrays, answer_start=len(arrays["ids"]) - len(parts[-1].ids) + parts[-1].answer_start)


def _decoded(tokens: Tokenised, backend: Any) -> str:
    return str(backend.decode(tokens.ids.tolist(), skip_special_tokens=False))


def _mark(encoding: Any, length: int, spans: Sequence[Span], role_spans: Sequence[RoleSpan]) -> Tokenised:
    ids = np.array(encoding.ids, dtype=np.int32)
    trained = np.zeros(len(ids), dtype=np.uint8)
    first = len(ids)
    for span in spans:
        found = overlapping_tokens(encoding, length, span)
        trained[found] = 1
        first = int(found.start)
    roles = np.zeros(len(ids), dtype=np.uint8)
    for begin, end, role in reversed(role_spans):  # a token with characters of two parts belongs to the first one
        roles[overlapping_tokens(encoding, length, (begin, end))] = role
    return Tokenised(ids, trained, roles, first)


def overlapping_tokens(encoding: Any, length: int, span: Span) -> slice:
    """Return the tokens of a text that overlap a span of characters.

    Several tokens can have the same characters (the bytes of one character), and a token can have none. A token without
    characters counts as one at its position.

    Args:
        encoding: The encoding of the text (``tokenizers.Encoding``).
        length: Length of the text.
        span: ``(start, end)`` in characters.
    """
    start, end = span
    first = encoding.char_to_token(start)
    after = encoding.char_to_token(end) if end < length else len(encoding)
    if first is None or after is None:  # the tokenizer has left out a character there, such as a space
        return _search(encoding.offsets, start, end)
    while first and max(encoding.token_to_chars(first - 1)[1], encoding.token_to_chars(first - 1)[0] + 1) > start:
        first -= 1
    while after < len(encoding) and encoding.token_to_chars(after)[0] < end:
        after += 1
    return slice(first, after)


def _search(offsets: List[Tuple[int, int]], start: int, end: int) -> slice:
    found = [number for number, (a, b) in enumerate(offsets) if a < end and max(b, a + 1) > start]
    return slice(found[0], found[-1] + 1) if found else slice(len(offsets), len(offsets))
