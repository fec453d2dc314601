"""The words of documents, so that the losses of tokens can be added up by word."""

import re
import unicodedata
from functools import lru_cache
from typing import Any, Callable, Dict, FrozenSet, Iterable, Iterator, List, NamedTuple, Optional, Tuple

import numpy as np

from ftdist.data.loader import PreparedSet
from ftdist.data.token_text import MAX_TOKENS_PER_CHARACTER

KEPT_TOKENS = 1 << 18
"""Evaluations keep the losses of the first documents of a set, which have at most this many tokens together."""

JOINED, ALONE, OTHER = "wa "
"""Kinds of characters: letters, digits, marks and underscores, which form words; letters of scripts without spaces
between words; all others."""
WITHOUT_SPACES = (
    (0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF),  # Thai and Lao, Burmese, Khmer
    (0x2E80, 0x2FDF), (0x3005, 0x3007), (0x3040, 0x30FF), (0x3400, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF),
)  # fmt: skip
"""Code points of scripts without spaces between words. Those of the last two lines are Chinese and Japanese."""
JOINERS = "_\u200c\u200d"


class TokenWord(NamedTuple):
    """The word to which a token belongs. All tokens of an occurrence have the same ``text`` and ``place``."""

    text: str
    place: int
    """Where it begins in the text of the document, in characters."""
    is_word: bool
    """False for punctuation, white space and special tokens. ``text`` is then that of the token."""


def kept_limits(dataset: PreparedSet) -> np.ndarray:
    """Return where the documents whose token losses are kept begin and end, counted in tokens over the rows.

    Returns:
        [documents + 1] int64, from 0. Document i of the rows has the tokens ``limits[i]`` to ``limits[i + 1] - 1``.
    """
    limits = np.concatenate([[0], np.cumsum(dataset.document_lengths().astype(np.int64))])
    kept: np.ndarray = limits[: np.searchsorted(limits, KEPT_TOKENS, side="right")]
    return kept


def words_of(text: str) -> List[str]:
    """Return the words of a text."""
    return [text[slice(*word.span())] for word in re.finditer(f"{JOINED}+", text.translate(_KINDS))]


def token_words(tokenizer: Any, documents: Iterable[np.ndarray]) -> Iterator[List[TokenWord]]:
    """Yield the word of each token, for one document after another.

    A word is the longest run of characters of the kind ``JOINED`` in the text of a document, over any number of tokens.
    A token that has characters of several words belongs to the first one. Added tokens, such as special ones, and
    tokens without a character of a word stand for themselves.

    Args:
        documents: The token ids of each document.
    """
    added = frozenset([*tokenizer.added_tokens_decoder, *tokenizer.all_special_ids])

    @lru_cache(maxsize=1 << 16)
    def decode(*ids: int) -> str:
        return str(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)) if ids else ""

    for ids in documents:
        yield list(_words_of_pieces(_pieces(decode, ids.tolist(), added)))


class _Piece(NamedTuple):
    """A token, or several tokens that form one character only together."""

    text: str
    tokens: int
    added: bool


def _pieces(decode: Callable[..., str], ids: List[int], added: FrozenSet[int]) -> Iterator[_Piece]:
    """Yield the parts of a document, each with its text as it is after the part before, such as a leading space."""
    before: Tuple[int, ...] = ()
    start = 0
    for end in range(1, len(ids) + 1):
        group = tuple(ids[start:end])
        text, known = decode(*before, *group), decode(*before)
        last = end == len(ids) or ids[end] in added or len(group) == MAX_TOKENS_PER_CHARACTER
        if text.endswith("\ufffd") and not last:
            continue
        text = text[len(known) :] if text.startswith(known) else decode(*group)
        yield _Piece(text, len(group), group[0] in added)
        before, start = group, end


def _words_of_pieces(pieces: Iterable[_Piece]) -> Iterator[TokenWord]:
    pieces = list(pieces)
    text = "".join(piece.text for piece in pieces)
    kinds = "".join(OTHER * len(piece.text) if piece.added else piece.text.translate(_KINDS) for piece in pieces)
    runs = re.finditer(f"{JOINED}+", kinds)
    run, begin = next(runs, None), 0
    word: Optional[TokenWord] = None
    for piece in pieces:
        end = begin + len(piece.text)
        while run and run.end() <= begin:
            run, word = next(runs, None), None
        if run and run.start() < end:
            found = word = word or TokenWord(text[slice(*run.span())], run.start(), True)
        else:
            found = TokenWord(piece.text.strip() or piece.text, begin, ALONE in kinds[begin:end])
        yield from [found] * piece.tokens
        begin = end


class _Kinds(Dict[int, str]):
    """The kind of each character, by its code point, for ``str.translate``."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        joined = character in JOINERS or unicodedata.category(character)[0] in "LMN"
        alone = any(first <= code <= last for first, last in WITHOUT_SPACES)
        self[code] = OTHER if not joined else ALONE if alone else JOINED
        return self[code]


_KINDS = _Kinds()
