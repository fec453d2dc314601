"""How many directions a change of weights has: the smallest rank that holds 99 % of its squared Frobenius norm.

By the theorem of Eckart and Young, the best matrix of rank k holds the k largest squared singular values. The sum of
all of them is the squared norm.
"""

import math
from dataclasses import dataclass
from typing import Optional, Tuple

import torch

SHARE = 0.99
"""Share of the squared norm that the rank must hold."""
EXACT_SIDE = 512
"""Matrices whose shorter side is at most this long are decomposed exactly."""
SKETCH_SIZES = (32, 256)
"""Numbers of random directions in which larger matrices are searched. Ranks above the last number are not known."""
POWER_ITERATIONS = 2


@dataclass(frozen=True)
class Rank:
    """The smallest rank that holds ``SHARE`` of the squared norm."""

    value: int
    """The rank; if it is not known, the largest rank that does not hold this share."""
    exceeds: bool = False
    """Whether the rank is larger than ``value``."""


def rank_of(matrix: torch.Tensor, seed: int) -> Rank:
    """Return the rank of a change.

    Args:
        matrix: [m, n] in fp32.
        seed: Chooses the random directions in which a large matrix is searched (Halko et al. 2011,
            https://arxiv.org/abs/0909.4061, algorithm 4.4). The squared norm that they find is a lower bound, so the
            rank is never too low. It is exact if the matrix has no more directions than are searched.
    """
    tall = matrix if len(matrix) >= matrix.shape[1] else matrix.T
    total, side = norm_of(matrix) ** 2, tall.shape[1]
    if side <= EXACT_SIDE:
        tall = tall.double()
        return _first_rank(torch.linalg.eigvalsh(tall.T @ tall).flip(0), total) or Rank(side)
    draw = torch.Generator().manual_seed(seed)
    directions = torch.randn(side, SKETCH_SIZES[-1], generator=draw, dtype=tall.dtype)
    for size in SKETCH_SIZES:
        basis = torch.linalg.qr(tall @ directions[:, :size]).Q
        for _ in range(POWER_ITERATIONS):
            basis = torch.linalg.qr(tall @ torch.linalg.qr(tall.T @ basis).Q).Q
        found = _first_rank(torch.linalg.svdvals(basis.T @ tall).square(), total)
        if found:
            return found
    return Rank(SKETCH_SIZES[-1], exceeds=True)


def norm_of(tensor: torch.Tensor) -> float:
    """Return the Frobenius norm, summed in 64 bits."""
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64))


def norm_and_rank_of_product(b: torch.Tensor, a: torch.Tensor, scale: float) -> Tuple[float, Rank]:
    """Return the Frobenius norm and the rank of scale · B · A, from its factors.

    Args:
        b: [m, r]. a: [r, n].
    """
    left, right = torch.linalg.qr(b.double()).R, torch.linalg.qr(a.double().T).R
    squares = (scale * torch.linalg.svdvals(left @ right.T)).square()
    total = float(squares.sum())
    return math.sqrt(total), _first_rank(squares, total) or Rank(len(squares))


def _first_rank(squares: torch.Tensor, total: float) -> Optional[Rank]:
    """Return the first rank that holds the share, None if no rank does.

    Args:
        squares: Squared singular values, the largest first.
        total: The squared norm of the matrix.
    """
    if total == 0:
        return Rank(0)
    enough = (squares.cumsum(0) >= SHARE * total).nonzero()
    return Rank(int(enough[0]) + 1) if len(enough) else None
