"""The cross-entropy of trained tokens, as a sum. No other module computes a training loss.

``ftdist.train.loop.train_step`` divides the sum by the number of trained tokens of the global batch.
"""

from typing import Any, Optional, Tuple

import numpy as np
import torch
import torch.nn.functional as F

from ftdist.data.loader import IGNORED
from ftdist.model.forward import Batch, forward_logits
from ftdist.model.routers import RouterLogits
from ftdist.objective.base import SegmentLosses
from ftdist.objective.chunked import SCORES, scores_of_logits
from ftdist.objective.head import Head, target_logprobs, target_scores


def token_loss(
    model: Any, batch: Batch, vocab_size: int, head: Optional[Head] = None, routers: Optional[RouterLogits] = None
) -> torch.Tensor:
    """Return the sum of the cross-entropies of the trained tokens of one micro-batch in nats, a scalar in fp32.

    The token at position t is predicted by the logits at position t - 1.

    Args:
        model: The model, or an engine.
        vocab_size: Number of rows of the embedding that are real tokens. The logits of the other rows are ignored.
        head: The head of the model. None: the loss is computed from the model's own logits.
        routers: Collects the logits of the routers of a mixture of experts.
    """
    targets, positions = _trained(batch)
    if not len(positions):
        # A rank without a trained token still runs the model: the other ranks wait for it in ZeRO's collectives.
        first = torch.zeros(1, dtype=torch.long, device=targets.device)
        return forward_logits(model, batch, first, routers).float().sum() * 0.0
    if head is not None:
        return -target_logprobs(model, batch, positions, targets[positions], vocab_size, head, True, routers).sum()
    logits = forward_logits(model, batch, positions, routers)[:, :vocab_size]
    return F.cross_entropy(logits.float(), targets[positions], reduction="sum")


DOCUMENT_METRICS = ("accuracy", "entropy")
"""Sums over the trained tokens of a segment: how many of them the model finds most probable, and the entropies of its
distributions in nats."""


@torch.no_grad()
def segment_losses(model: Any, batch: Batch, vocab_size: int, head: Optional[Head] = None) -> SegmentLosses:
    """Return the cross-entropy and the ``DOCUMENT_METRICS`` of the trained tokens of one micro-batch, by segment.

    The sums are computed on the host, one token after another, so they do not depend on the device.
    See ``token_loss`` for the arguments.
    """
    targets, positions = _trained(batch)
    scores = torch.zeros(0, len(SCORES))
    if not len(positions):
        token_loss(model, batch, vocab_size, head)  # see there
    elif head is not None:
        scores = target_scores(model, batch, positions, targets[positions], vocab_size, head)
    else:
        logits = forward_logits(model, batch, positions)[:, :vocab_size]
        scores = scores_of_logits(logits, targets[positions])
    segments, count = np.asarray(batch.limits[1:]), len(batch.limits) - 1
    places = positions.cpu().numpy() + 1
    of_token = np.searchsorted(segments, places, side="right")
    columns = scores.double().cpu().numpy().T
    logprobs, *metrics = (np.bincount(of_token, column, count) for column in columns)
    weights = np.bincount(of_token, minlength=count).astype(float)
    token_losses = np.zeros(batch.limits[-1])
    token_losses[places] = -columns[0]
    return SegmentLosses(-logprobs, weights, token_losses, dict(zip(DOCUMENT_METRICS, metrics, strict=True)))


def _trained(batch: Batch) -> Tuple[torch.Tensor, torch.Tensor]:
    """Return the token after each position, [T - 1] int64, and the positions before trained tokens, [n] int64."""
    targets = batch.labels[0, 1:]
    return targets, (targets != IGNORED).nonzero()[:, 0]
