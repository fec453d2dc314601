"""Small tokenizers of the kinds that models have: byte-level BPE with different splits, and SentencePiece."""

import string
from typing import Any

TRAINING_TEXT = (
    "the quick brown fox jumps over the lazy dog and the other dogs are fine\nHello World how are you 1234567 2024\n"
    "def f(x):\n\t\treturn x 12 345 don't WE'LL iPhone HTTPServer Be brief Fine thanks  two  spaces café naïve\n"
) * 3
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TURNS = (
    "{{ bos_token }}{% set first = messages[0].role == 'system' %}{% for m in messages %}{% if m.role != 'system' %}"
    "<|im_start|>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{% if first and loop.index == 2 %}{{ messages[0].content }}\n\n{% endif %}{{ m.content }}<|im_end|>\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>model\n{% endif %}"
)
"""The system message is a part of the first turn, as in Gemma's template."""
ADDED = ["<|im_start|>", "<|im_end|>", "<|pad|>"]
SPACE = "\u2581"


def byte_level(split: str, size: int = 340) -> Any:
    """Return a byte-level tokenizer.

    Args:
        split: llama.cpp's name of how it splits text.
        size: Number of tokens, without the special ones.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from ftdist.checkpoint.gguf_vocabulary import splitters

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = splitters()[split], decoders.ByteLevel()
    backend.train_from_iterator([TRAINING_TEXT], trainers.BpeTrainer(
        vocab_size=size, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))  # fmt: skip
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|pad|>",
                                        additional_special_tokens=["<|im_start|>"])  # fmt: skip
    tokenizer.chat_template = CHATML
    tokenizer.add_tokens(["<think>"])  # one that is not special
    return tokenizer


def sentencepiece(kind: Any) -> Any:
    """Return a tokenizer of a class of transformers that works as SentencePiece does.

    Args:
        kind: ``LlamaTokenizer`` or ``GemmaTokenizer``.
    """
    import json

    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.normalizer = normalizers.Replace(" ", SPACE)
    backend.pre_tokenizer = pre_tokenizers.Split(SPACE, behavior="merged_with_next")
    names = ["<pad>", "<eos>", "<bos>", "<unk>"] if "Gemma" in kind.__name__ else ["<unk>", "<s>", "</s>", "<pad>"]
    names += [*ADDED[:2], *(f"<0x{byte:02X}>" for byte in range(256))]
    backend.train_from_iterator([TRAINING_TEXT], trainers.BpeTrainer(
        vocab_size=420, show_progress=False, initial_alphabet=[*string.printable.strip(), SPACE],
        special_tokens=names))  # fmt: skip
    model = json.loads(backend.to_str())["model"]
    tokenizer = kind(vocab=model["vocab"], merges=[tuple(merge) for merge in model["merges"]], pad_token="<pad>",
                     add_bos_token=True)  # fmt: skip
    tokenizer.add_special_tokens({"additional_special_tokens": ADDED[:2]}, replace_extra_special_tokens=False)
    tokenizer.chat_template = TURNS
    return tokenizer
