"""Which tokens overlap a span of characters, compared with the offsets of all tokens."""

import json
import random
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ftdist.config.data import TrainOn
from ftdist.data.render import Rendered, make_renderer
from ftdist.data.tokenise import overlapping_tokens, tokenise
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


def with_merges(*merges: tuple[str, str]) -> Any:
    """Return a byte-level tokenizer with some merges."""
    characters = json.loads(bytes_tokenizer().backend_tokenizer.to_str())["model"]["vocab"]
    vocab = {token: number for number, token in enumerate([*characters, *map("".join, merges)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")


@pytest.mark.parametrize(
    "prompt, answer",
    [("q<think>\n", "\n</think>\n\na"), ("q\nAssistant: ", "a"), ("q", "a"), ("q\n\n", "a\n\n")],
)
def test_the_tokens_before_an_answer_are_those_of_the_prompt_alone(prompt: str, answer: str) -> None:
    """The answer is what a chat program makes of the prompt."""
    tokenizer = with_merges(("Ċ", "Ċ"), ("Ġ", "a"))
    spans = [(len(prompt), len(prompt + answer)), (len(prompt * 2 + answer), len((prompt + answer) * 2))]
    renderer = make_renderer(tokenizer, TrainOn.auto)
    [made] = tokenise([Rendered((prompt + answer) * 2, spans)], renderer)
    one, two = (tokenizer(text).input_ids for text in (prompt, answer))
    assert made.ids.tolist() == [*one, *two] * 2
    assert made.trained.tolist() == ([0] * len(one) + [1] * len(two)) * 2
    assert made.answer_start == len(one) + len(two) + len(one)


def test_a_tokenizer_that_adds_a_space_before_each_text_tokenises_the_whole_text() -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=with_metaspace(), eos_token="<unk>")
    tokenizer.chat_template = ""
    [made] = tokenise([Rendered("a word", [(2, 6)])], make_renderer(tokenizer, TrainOn.auto))
    assert made.ids.tolist() == tokenizer("a word").input_ids
