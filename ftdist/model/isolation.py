"""Proof, at the start of a packed run, that documents in a row do not see each other.

Two measurements on one row of three documents of random tokens: other tokens in the first document must leave the
logits of the others as they are, bit for bit; and the second document must have the logits it has on its own (positions
restart), up to rounding. In a mixture of experts the first holds up to rounding only: the sizes of the experts' matrix
products depend on where the other documents' tokens are routed.
"""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, List

import torch

from ftdist.errors import ConfigError
from ftdist.model.loss import forward_logits

LENGTHS = (7, 9, 5)
ROUNDING = {torch.float32: 1e-4, torch.bfloat16: 1e-1}  # relative to the largest logit


@dataclass(frozen=True)
class Isolation:
    crossing: float
    """Largest change of another document's logits, relative to the largest logit."""
    alone: float
    """Largest difference to the document on its own, relative to its largest logit."""


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
def measure_isolation(model: Any, vocab_size: int, device: torch.device) -> Isolation:
    """Runs on every rank alike (ZeRO-3 gathers parameters in it). The model is left in the mode it was in."""
    draw = torch.Generator().manual_seed(0)
    first, second, third, other = (
        torch.randint(vocab_size, (n,), generator=draw).to(device) for n in (*LENGTHS, LENGTHS[0])
    )
    was_training = model.training
    model.eval()

    def logits(*documents: torch.Tensor) -> torch.Tensor:
        row = _row(list(documents))
        return forward_logits(model, row, torch.arange(row.input_ids.shape[1], device=device)).float()

    here, there = logits(first, second, third)[len(first) :], logits(other, second, third)[len(first) :]
    alone = logits(second)
    model.train(was_training)
    largest = alone.abs().max().clamp(min=1e-12)
    return Isolation(
        crossing=float((here - there).abs().max() / largest),
        alone=float((here[: len(second)] - alone).abs().max() / largest),
    )


def prove_isolation(model: Any, vocab_size: int, device: torch.device, dtype: torch.dtype, backend: str) -> Isolation:
    """
    Raises:
        ConfigError: the backend lets documents see each other, or does not restart positions.
    """
    measured = measure_isolation(model, vocab_size, device)
    allowed = ROUNDING[dtype] if _has_experts(getattr(model, "module", model).config) else 0.0
    if not measured.crossing <= allowed or not measured.alone <= ROUNDING[dtype]:
        raise ConfigError(
            f"model.attention={backend} does not isolate packed documents: changing one document moved another's "
            f"logits by {measured.crossing:.3g}, and a document packed differs from itself alone by "
            f"{measured.alone:.3g}",
            "no change, and equal up to rounding",
            "model.attention=mask, or data.packing=false",
        )
    return measured


def _has_experts(config: Any) -> bool:
    text_config = config.get_text_config()
    names = ("num_experts", "num_local_experts", "n_routed_experts")
    return any(getattr(text_config, name, 0) for name in names)
