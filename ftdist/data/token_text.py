"""Decode tokens one by one, for people to read."""

from typing import Any, List, Tuple

import numpy as np

MAX_TOKENS_PER_CHARACTER = 8


def split_tokens(tokenizer: Any, ids: np.ndarray, trained: np.ndarray) -> List[Tuple[str, int, slice]]:
    """Decode each token separately.

    Several tokens stay together if they form one character only together, for example the bytes of an emoji.

    Args:
        ids: [n] token ids.
        trained: [n] 1 for trained tokens, 0 for the others.

    Returns:
        ``(text, trained, tokens)`` for each token or group: ``tokens`` is its slice of ``ids``.
    """
    shown: List[Tuple[str, int, slice]] = []
    start = 0
    for number, flag in enumerate(trained.tolist()):
        text = tokenizer.decode(ids[start : number + 1].tolist(), clean_up_tokenization_spaces=False)
        last = number + 1 == len(ids) or trained[number + 1] != flag
        if text.endswith("\ufffd") and not last and number + 1 - start < MAX_TOKENS_PER_CHARACTER:
            continue
        shown.append((text, int(flag), slice(start, number + 1)))
        start = number + 1
    return shown
