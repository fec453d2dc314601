"""The tokenizer of a model as llama.cpp reads it: tokens, their types, merges or scores, and how text is split first.

llama.cpp knows ways to split text by name. The name is found by trying each on a probe text, and not by a hash of token
ids, which a change of a library can alter.
"""

import json
from dataclasses import dataclass
from typing import Any, Dict, List, Optional

from ftdist.base.errors import ConfigError
from ftdist.checkpoint.probes import TEXT, rendered_chats

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Types of tokens in a GGUF file."""
SPACE = "\u2581"
"""What SentencePiece writes for a space."""
LOWEST_SCORE = -1e6
_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+%s"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*%s"
)
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LINES, _SPACES = r"| ?[^\s\p{L}\p{N}]+[\r\n]*", r"|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS = {
    "llama-bpe": rf"{_SHORT}|{_LETTERS}|\p{{N}}{{1,3}}{_LINES}{_SPACES}",
    "qwen2": rf"{_SHORT}|{_LETTERS}|\p{{N}}{_LINES}{_SPACES}",
    "tekken": _CASED % ("", "") + r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*" + _SPACES,
    "gpt-4o": _CASED % (f"{_SHORT}?", f"{_SHORT}?") + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*" + _SPACES,
}
"""Regular expressions of llama.cpp's ways to split text, by their names there."""


@dataclass(frozen=True)
class Vocabulary:
    """What a GGUF file says of a tokenizer."""

    model: str
    """``gpt2`` for byte-level BPE, ``llama`` for SentencePiece."""
    pre: str
    """llama.cpp's name of the way to split text."""
    tokens: List[str]
    types: List[int]
    merges: List[str]
    """Merges of byte-level BPE, in the order in which they apply."""
    scores: List[float]
    """Scores of SentencePiece. Pieces with higher scores are made first."""
    add_space_prefix: Optional[bool]


def read_vocabulary(tokenizer: Any, size: int, llama_cpp: str) -> Vocabulary:
    """Return the vocabulary of a fast tokenizer.

    Args:
        size: Number of rows of the embedding. Rows without a token get an unused one.
        llama_cpp: The commands with which llama.cpp converts the export.

    Raises:
        ConfigError: It is not a BPE tokenizer with merges, or llama.cpp has no pre-tokenizer that splits text like it.
    """
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    model = backend["model"]
    merges = [m.split(" ") if isinstance(m, str) else m for m in model.get("merges", [])]
    if model["type"] != "BPE" or not merges:
        # llama.cpp does not know a BPE tokenizer without merges (model.tokenizer=bytes) either.
        fix = llama_cpp if merges or model["type"] != "BPE" else "leave out --gguf: an export in Hugging Face format"
        raise ConfigError(f"--gguf: the tokenizer is of type {model['type']} with {len(merges)} merges",
                          "a BPE tokenizer with merges, as the models of these families have", fix)  # fmt: skip
    byte_level = "ByteLevel" in json.dumps(backend["pre_tokenizer"])
    tokens, types = _tokens(tokenizer, backend, size, byte_level)
    if byte_level:
        pre = _split_name(tokenizer.backend_tokenizer, llama_cpp)
        return Vocabulary("gpt2", pre, tokens, types, [" ".join(merge) for merge in merges], [], None)
    return Vocabulary("llama", "default", tokens, types, [], _scores(tokens, merges), _has_space_prefix(tokenizer))


def _has_space_prefix(tokenizer: Any) -> bool:
    """Return whether llama.cpp must put a space before text.

    llama.cpp puts spaces at the start of a text and after every special token, or nowhere. Newer tokenizers put one at
    the start only, so a chat that begins with a special token has none.
    """
    chats = rendered_chats(tokenizer)
    first = next((token for token in tokenizer.get_added_vocab() if chats and chats[0].startswith(token)), "")
    found = tokenizer.backend_tokenizer.encode(f"{first}a", add_special_tokens=False).tokens
    return bool(found[1 if first else 0].startswith(SPACE))


def _tokens(tokenizer: Any, backend: Dict[str, Any], size: int, byte_level: bool) -> Any:
    """Return the tokens by id, and their types."""
    ids = dict(backend["model"]["vocab"])
    added = {token["id"]: token for token in backend["added_tokens"]}
    ids |= {token["content"]: number for number, token in added.items()}
    tokens, types = [f"[PAD{number}]" for number in range(size)], [UNUSED] * size
    for token, number in ids.items():
        tokens[number], types[number] = token, NORMAL
        if number in added:
            types[number] = CONTROL if added[number]["special"] else USER_DEFINED
            if not byte_level and types[number] == USER_DEFINED:  # llama.cpp compares these with the text itself
                tokens[number] = token.replace(SPACE, " ")
        elif not byte_level and len(token) == 6 and token.startswith("<0x"):
            types[number] = BYTE
    if not byte_level and tokenizer.unk_token_id is not None:
        types[tokenizer.unk_token_id] = UNKNOWN
    return tokens, types


def _scores(tokens: List[str], merges: List[List[str]]) -> List[float]:
    """Return scores that make llama.cpp merge pieces in the order of the merges.

    llama.cpp makes the piece with the highest score first. The rank of a piece is that of its first merge.
    """
    ranks: Dict[str, int] = {}
    for left, right in merges:
        ranks.setdefault(left + right, len(ranks))
    return [-float(ranks[token]) if token in ranks else LOWEST_SCORE for token in tokens]


def splitters() -> Dict[str, Any]:
    """Return tokenizers' form of llama.cpp's ways to split text, by their names there."""
    from tokenizers import Regex, pre_tokenizers

    found: Dict[str, Any] = {"gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)}
    digits = pre_tokenizers.Digits(individual_digits=True)
    found["smollm"] = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for name, pattern in SPLITS.items():
        split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
        found[name] = pre_tokenizers.Sequence([split, plain])
    return found


def _split_name(backend: Any, llama_cpp: str) -> str:
    """Return the name of the way in which a byte-level tokenizer splits text.

    It is the way that splits the probe text into the same parts. If there is none, it is one with the same tokens.
    """
    from tokenizers import Tokenizer

    candidates, parts = splitters(), backend.pre_tokenizer.pre_tokenize_str(TEXT)
    for name, splitter in candidates.items():
        if splitter.pre_tokenize_str(TEXT) == parts:
            return name
    ids = backend.encode(TEXT, add_special_tokens=False).ids
    copy = Tokenizer.from_str(backend.to_str())
    for name, splitter in candidates.items():
        copy.pre_tokenizer = splitter
        if copy.encode(TEXT, add_special_tokens=False).ids == ids:
            return name
    raise ConfigError("--gguf: llama.cpp has no pre-tokenizer that splits text like this tokenizer",
                      ", ".join(candidates), llama_cpp)  # fmt: skip
