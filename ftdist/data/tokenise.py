"""Tokenise rendered documents and mark the trained tokens.

A token is trained if it overlaps a trained span. So the mask never depends on token ids (the padding token can be the
same as the stop token), and no part of a text is tokenised separately.
"""

from dataclasses import dataclass
from typing import Any, List

import numpy as np

from ftdist.data.chat_template import Span
from ftdist.data.render import Rendered, Renderer


@dataclass(frozen=True)
class Tokenised:
    ids: np.ndarray
    """[n] int32."""
    trained: np.ndarray
    """[n] uint8: 1 for trained tokens. The first token is never trained, because nothing predicts it."""
    answer_start: int
    """Index of the first token of the last trained span, or n if there is none. In a piece of a split document, it can
    be outside the piece."""


def tokenise(rendered: List[Rendered], renderer: Renderer) -> List[Tokenised]:
    """Tokenise texts and mark the tokens that overlap the trained spans."""
    encodings = renderer.tokenizer.backend_tokenizer.encode_batch([r.text for r in rendered], add_special_tokens=False)
    return [_mark(encoding, r.spans) for encoding, r in zip(encodings, rendered, strict=True)]


def _mark(encoding: Any, spans: List[Span]) -> Tokenised:
    ids = np.array(encoding.ids, dtype=np.int32)
    offsets = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
    starts, ends = offsets[:, 0], np.maximum(offsets[:, 1], offsets[:, 0] + 1)
    trained = np.zeros(len(ids), dtype=np.uint8)
    overlap = trained.view(bool)
    for start, end in spans:
        overlap = (starts < end) & (ends > start)
        trained[overlap] = 1
    trained[:1] = 0
    return Tokenised(ids, trained, int(overlap.argmax()) if overlap.any() else len(ids))
