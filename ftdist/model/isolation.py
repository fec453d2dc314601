"""Proof that no token sees a later token, or a token of another document. Every run begins with it.

The proof runs the model on one row of three documents with random tokens, and compares logits:

1. If the tokens of the first document change, the logits of the other two documents must not change at all.
2. If the last tokens of the third document change, its logits before them must not change at all.
3. The logits of the second document must be equal, up to rounding, to its logits when it is alone in a row. This shows
   that positions restart in each document.

In a mixture of experts, 1 and 2 hold only up to rounding: the sizes of an expert's matrix products depend on the
routing of the other tokens.

A micro-batch contains several documents even without packing, because its rows form one sequence. Only a micro-batch of
one row without packing contains a single document. Then only 2 is checked.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch

from ftdist.base.errors import ConfigError
from ftdist.model.exactness import micro_batch
from ftdist.model.forward import evaluation_mode, forward_logits, without_engine
from ftdist.model.routers import has_experts

LENGTHS = (7, 9, 5)
"""Lengths of the three documents in tokens."""
CHANGED = 2
"""Number of tokens at the end of the last document that are changed."""
ROUNDING = {torch.float32: 1e-4, torch.bfloat16: 1e-1}
"""Largest difference that counts as rounding, relative to the largest logit."""


@dataclass(frozen=True)
class Isolation:
    """Measured differences of logits, relative to the largest logit."""

    looking_ahead: float
    """Largest change of the logits before the changed tokens of the same document."""
    crossing: float = 0.0
    """Largest change of the logits of the other documents when a document changes."""
    alone: float = 0.0
    """Largest difference between the logits of a document in the row and alone."""


@torch.no_grad()
def measure_isolation(model: Any, vocab_size: int, device: torch.device, one_document: bool = False) -> Isolation:
    """Measure how much logits change if tokens change that they must not depend on.

    All ranks must call this together, because ZeRO-3 gathers parameters in the forward.

    Args:
        model: The model, or an engine.
        vocab_size: Random tokens are smaller than this.
        one_document: A micro-batch never contains more than one document.
    """
    draw = torch.Generator().manual_seed(0)
    first, second, third, other = (
        torch.randint(vocab_size, (n,), generator=draw).to(device) for n in (*LENGTHS, LENGTHS[0])
    )
    third_changed = torch.cat([third[:-CHANGED], (third[-CHANGED:] + 1) % vocab_size])

    def logits(*documents: torch.Tensor) -> torch.Tensor:
        row = micro_batch(list(documents))
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
    """Measure the isolation of tokens and documents, and refuse a model or backend without it.

    Args:
        dtype: Type of the weights.
        backend: Name of the attention backend, for error messages.
        one_document: A micro-batch never contains more than one document.

    Raises:
        ConfigError: Logits are not finite, the model sees later tokens, or the backend lets documents see each other or
            does not restart positions.
    """
    measured = measure_isolation(model, vocab_size, device, one_document)
    architecture = without_engine(model).config
    if math.isnan(measured.looking_ahead):
        raise ConfigError(f"the logits of the {architecture.model_type} model are not finite for random tokens",
                          "weights with which all logits are finite",
                          "use another copy of the model: its files may be damaged")  # fmt: skip
    allowed = ROUNDING[dtype] if has_experts(architecture) else 0.0
    if not measured.looking_ahead <= allowed:
        raise ConfigError(
            f"with the attention {backend}, tokens of {architecture.model_type} can see later tokens: changing a "
            f"token changed the logits of earlier tokens by {measured.looking_ahead:.3g}",
            "a model in which a token sees only earlier tokens",
            "use a decoder-only model, or set model.attention=auto",
        )
    if not measured.crossing <= allowed or not measured.alone <= ROUNDING[dtype]:
        raise ConfigError(
            f"the attention {backend} does not isolate documents: changing one document changed the logits of "
            f"another by {measured.crossing:.3g}, and the logits of a document differ by {measured.alone:.3g} between "
            "a row with other documents and the document alone",
            "unchanged logits of the other documents, and the same logits in both cases except for rounding",
            "model.attention=rows, or train on one document at a time: data.packing=false batch.micro_batch_size=1",
        )
    return measured
