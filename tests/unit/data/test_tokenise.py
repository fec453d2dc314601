"""Which tokens overlap a span of characters, compared with the offsets of all tokens."""

import random
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from ftdist.data.tokenise import overlapping_tokens
from ftdist.data.tokenizer import bytes_tokenizer

PIECES = ["a", "é", "馬", "👍🏽", " ", "  ", "\n", "<|im_end|>", "<|im_start|>", "word", "ﬁ", "\u0301", "."]


def with_metaspace() -> Any:
    """Return a tokenizer in the style of SentencePiece: unknown characters become bytes, and spaces become ▁."""
    vocab = ["<unk>", "▁", "a", "word", "▁word", ".", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(models.BPE(
        vocab={word: number for number, word in enumerate(vocab)}, merges=[], unk_token="<unk>", byte_fallback=True
    ))  # fmt: skip
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.ByteFallback()
    return tokenizer


def with_lost_spaces() -> Any:
    words = {"<unk>": 0, "a": 1, "word": 2, ".": 3}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


@pytest.mark.parametrize("make", [lambda: bytes_tokenizer().backend_tokenizer, with_metaspace, with_lost_spaces])
def test_the_trained_tokens_are_those_that_overlap_the_span(make: Any) -> None:
    tokenizer, draw = make(), random.Random(0)
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in ("<|im_end|>", "<|im_start|>")])
    for _ in range(300):
        text = "".join(draw.choices(PIECES, k=draw.randrange(1, 12)))
        encoding = tokenizer.encode(text, add_special_tokens=False)
        start = draw.randrange(len(text))
        end = draw.randrange(start + 1, len(text) + 1)
        found = overlapping_tokens(encoding, len(text), (start, end))
        expected = [n for n, (a, b) in enumerate(encoding.offsets) if a < end and max(b, a + 1) > start]
        assert list(range(len(encoding)))[found] == expected, (text, start, end, encoding.offsets)
