"""The words of tokens: subwords, spaces, characters in several tokens, scripts, and special tokens."""

from typing import Any, List, Tuple

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ftdist.data.loader import PreparedSet
from ftdist.data.tokenizer import bytes_tokenizer
from ftdist.data.words import kept_limits, token_words, words_of


def found(tokenizer: Any, ids: List[int]) -> List[Tuple[str, int, bool]]:
    [words] = token_words(tokenizer, [np.array(ids, dtype=np.int32)])
    assert len(words) == len(ids)
    return [tuple(word) for word in words]


def tokenizer_of(pieces: List[str], decoder: Any) -> Any:
    """Return a tokenizer whose tokens are ``pieces``, numbered from 0."""
    backend = Tokenizer(models.WordLevel({piece: number for number, piece in enumerate(pieces)}, unk_token=pieces[0]))
    backend.decoder = decoder
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def test_words_are_runs_of_letters_digits_marks_and_underscores() -> None:
    text = "The the_2nd (größe) हिन्दी भाषा, it's 한국어!"
    assert words_of(text) == ["The", "the_2nd", "größe", "हिन्दी", "भाषा", "it", "s", "한국어"]


def test_bytes_of_a_word_belong_to_it_and_others_stand_for_themselves() -> None:
    tokenizer = bytes_tokenizer()
    ids = [*tokenizer.encode("ö-1é 漢字\n", add_special_tokens=False), tokenizer.eos_token_id, ord("a")]
    word, dash, second, space, line = (("ö", 0, True), ("-", 1, False), ("1é", 2, True), (" ", 4, False),
                                       ("\n", 7, False))  # fmt: skip
    expected = [word] * 2 + [dash] + [second] * 3 + [space] + [("漢", 5, True)] * 3 + [("字", 6, True)] * 3 + [line]
    end = "<|im_end|>"
    assert found(tokenizer, ids) == [*expected, (end, 8, False), ("a", 8 + len(end), True)], "im_end is not a word"
    assert found(tokenizer, [*"ö".encode()[:1], tokenizer.eos_token_id])[1] == (end, 1, False), "a broken character"


def test_pieces_that_split_a_character_and_leading_spaces_of_byte_level_bpe() -> None:
    backend = bytes_tokenizer().backend_tokenizer
    vocab = dict(backend.get_vocab(with_added_tokens=False))
    merges = [("¤", "Ã"), ("h", "e"), ("Ġ", "t"), ("Ġt", "he"), ("Ġ", "(")]
    for pair in merges:
        vocab["".join(pair)] = len(vocab)
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    ids = tokenizer.encode("ää the then (")
    assert tokenizer.convert_ids_to_tokens(ids) == ["Ã", "¤Ã", "¤", "Ġthe", "Ġthe", "n", "Ġ("]
    assert found(tokenizer, ids) == [("ää", 0, True)] * 3 + [
        ("the", 3, True), ("then", 7, True), ("then", 7, True), ("(", 11, False)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("pieces", "decoder"),
    [
        (["▁the", "▁ca", "ts", "▁the"], decoders.Sequence([
            decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])),
        (["the", "ca", "##ts", "the"], decoders.WordPiece(cleanup=False)),
        (["the</w>", "ca", "ts</w>", "the</w>"], decoders.BPEDecoder("</w>")),
    ],
    ids=["SentencePiece", "WordPiece", "endings of words"],
)  # fmt: skip
def test_the_spaces_between_words_are_those_of_the_whole_text(pieces: List[str], decoder: Any) -> None:
    tokenizer = tokenizer_of(sorted({*pieces}), decoder)
    ids = tokenizer.convert_tokens_to_ids(pieces)
    assert [(text, is_word) for text, _, is_word in found(tokenizer, ids)] == [
        (text, True) for text in ("the", "cats", "cats", "the")
    ]
    places = [place for _, place, _ in found(tokenizer, ids)]
    assert places[1] == places[2] and len(set(places)) == 3, "two times the, and once cats"


def test_a_token_with_two_words_belongs_to_the_first() -> None:
    tokenizer = tokenizer_of(["x", "a-b", "c"], decoders.Fuse())
    assert found(tokenizer, [0, 1, 2]) == [("xa", 0, True), ("xa", 0, True), ("bc", 3, True)]


def test_whole_documents_are_kept_in_the_order_of_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing, offsets = np.zeros(9, dtype=np.int32), np.array([0, 2, 5, 9])
    dataset = PreparedSet(nothing, nothing, offsets, np.array([2, 0, 1, 0]), np.array([0, 2, 4]))
    assert kept_limits(dataset).tolist() == [0, 4, 6, 9, 11]
    monkeypatch.setattr("ftdist.data.words.KEPT_TOKENS", 8)
    assert kept_limits(dataset).tolist() == [0, 4, 6]
    monkeypatch.setattr("ftdist.data.words.KEPT_TOKENS", 3)
    assert kept_limits(dataset).tolist() == [0]
