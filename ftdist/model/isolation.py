"""Proof, at the start of every run, that no token sees what it must not: a later one, or one of another document.

Measured on one row of three documents of random tokens. Other tokens in the first document must leave the logits of the
others as they are, bit for bit. Other tokens at the end of the third must leave its logits before them as they are. And
the second document must have the logits it has on its own (positions restart), up to rounding. In a mixture of experts
the first two hold up to rounding only: the sizes of the experts' matrix products depend on where the other tokens are
routed.

Rows are laid end to end whether they are packed or padded. Only where there is never more than one document, in a
padded run of one row at a time, nothing but the order of its tokens is left to prove.
"""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, List

import torch

from ftdist.base.errors import ConfigError
from ftdist.model.forward import evaluation_mode, forward_logits, without_engine

LENGTHS = (7, 9, 5)
CHANGED = 2
"""Tokens at the end of the last document that are exchanged."""
ROUNDING = {torch.float32: 1e-4, torch.bfloat16: 1e-1}  # relative to the largest logit


@dataclass(frozen=True)
class Isolation:
    """Each relative to the largest logit."""

    looking_ahead: float
    """Largest change of logits before a token that was changed, in its document."""
    crossing: float = 0.0
    """Largest change of another document's logits."""
    alone: float = 0.0
    """Largest difference to the document on its own."""


def _row(documents: List[torch.Tensor]) -> SimpleNamespace:
    lengths = torch.tensor([len(d) for d in documents])
    device = documents[0].device
    return SimpleNamespace(
        input_ids=torch.cat(documents)[None],
        position_ids=torch.cat([torch.arange(len(d), device=device) for d in documents])[None],
        cu_seqlens=torch.cat([torch.zeros(1), lengths.cumsum(0)]).to(device, torch.int32),
        max_seqlen=int(lengths.max()),
    )


@torch.no_grad()
def measure_isolation(model: Any, vocab_size: int, device: torch.device, one_document: bool = False) -> Isolation:
    """Runs on every rank alike (ZeRO-3 gathers parameters in it). The model is left in the mode it was in."""
    draw = torch.Generator().manual_seed(0)
    first, second, third, other = (
        torch.randint(vocab_size, (n,), generator=draw).to(device) for n in (*LENGTHS, LENGTHS[0])
    )
    third_changed = torch.cat([third[:-CHANGED], (third[-CHANGED:] + 1) % vocab_size])

    def logits(*documents: torch.Tensor) -> torch.Tensor:
        row = _row(list(documents))
        return forward_logits(model, row, torch.arange(row.input_ids.shape[1], device=device)).float()

    before = [] if one_document else [first, second]
    with evaluation_mode(without_engine(model)):
        here, changed = logits(*before, third), logits(*before, third_changed)
        there, alone = (here, here) if one_document else (logits(other, second, third), logits(second))
    largest = here.abs().max().clamp(min=1e-12)

    def difference(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((a - b).abs().max() / largest)

    ahead = difference(here[:-CHANGED], changed[:-CHANGED])
    if one_document:
        return Isolation(ahead)
    start = len(first)
    return Isolation(
        ahead, difference(here[start:], there[start:]), difference(here[start : start + len(second)], alone)
    )


def prove_isolation(
    model: Any, vocab_size: int, device: torch.device, dtype: torch.dtype, backend: str, one_document: bool = False
) -> Isolation:
    """
    Args:
        one_document: the model never sees more than one document at a time.

    Raises:
        ConfigError: the model reads ahead, or the backend lets documents see each other or does not restart positions.
    """
    measured = measure_isolation(model, vocab_size, device, one_document)
    architecture = without_engine(model).config
    allowed = ROUNDING[dtype] if _has_experts(architecture) else 0.0
    if not measured.looking_ahead <= allowed:
        raise ConfigError(
            f"{architecture.model_type} reads ahead with model.attention={backend}: changing a token moved logits "
            f"before it by {measured.looking_ahead:.3g}",
            "a model in which a token sees only what came before it",
            "a decoder-only model whose attention transformers can exchange (llama, qwen3, gpt2 …)",
        )
    if not measured.crossing <= allowed or not measured.alone <= ROUNDING[dtype]:
        raise ConfigError(
            f"model.attention={backend} does not isolate documents: changing one document moved another's "
            f"logits by {measured.crossing:.3g}, and a document in a row differs from itself alone by "
            f"{measured.alone:.3g}",
            "no change, and equal up to rounding",
            "model.attention=mask, or one document at a time: data.packing=false batch.micro_batch_size=1",
        )
    return measured


def _has_experts(config: Any) -> bool:
    text_config = config.get_text_config()
    names = ("num_experts", "num_local_experts", "n_routed_experts")
    return any(getattr(text_config, name, 0) for name in names)
