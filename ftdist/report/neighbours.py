"""The tokens whose embeddings moved most, and the tokens that are nearest to them before and after training."""

from typing import Any, Dict, List

import torch

MOST_MOVED, NEAREST = 10, 5
"""Number of tokens that are reported, and of their neighbors."""


def most_moved(before: torch.Tensor, after: torch.Tensor, tokenizer: Any) -> List[Dict[str, Any]]:
    """Return the tokens whose embeddings moved most, relative to their length, the most moved first.

    Args:
        before: [vocabulary, width] embedding of the base model in fp32.
        after: The same after training.

    Returns:
        For each token ``id``, ``text``, ``moved`` (‖Δe‖/‖e‖), and the texts of the tokens with the highest cosine
        similarity, ``nearest_before`` and ``nearest_after``. Tokens that did not move are left out.
    """
    lengths = before.norm(dim=1)
    moved = torch.where(lengths > 0, (after - before).norm(dim=1) / lengths, torch.zeros(()))
    moved = moved[: len(tokenizer)]
    chosen = [token for token in moved.argsort(descending=True, stable=True)[:MOST_MOVED].tolist() if moved[token] > 0]
    near = [_nearest(rows[: len(tokenizer)], chosen) for rows in (before, after)]
    return [
        {"id": token, "text": _text(tokenizer, token), "moved": float(moved[token]),
         **{name: [_text(tokenizer, other) for other in rows[number]]
            for name, rows in zip(("nearest_before", "nearest_after"), near, strict=True)}}
        for number, token in enumerate(chosen)
    ]  # fmt: skip


def _nearest(rows: torch.Tensor, tokens: List[int]) -> List[List[int]]:
    """Return for each token the others with the highest cosine similarity."""
    if not tokens:
        return []
    units = torch.nn.functional.normalize(rows, dim=1)
    similar = units[tokens] @ units.T
    similar[range(len(tokens)), tokens] = -torch.inf
    return similar.topk(min(NEAREST, len(rows) - 1), dim=1).indices.tolist()


def _text(tokenizer: Any, token: int) -> str:
    return str(tokenizer.decode([token], clean_up_tokenization_spaces=False))
