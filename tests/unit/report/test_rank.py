"""The rank of a change: planted ranks are found, exactly, by a sketch, and from the factors of an adapter."""

import pytest
import torch

from ftdist.report import rank
from ftdist.report.rank import Rank, norm_and_rank_of_product, norm_of, rank_of


def _product(rows: int, columns: int, inner: int, seed: int = 0) -> torch.Tensor:
    """A matrix whose ``inner`` singular values are all 1."""
    draw = torch.Generator().manual_seed(seed)
    left, right = (torch.linalg.qr(torch.randn(n, inner, generator=draw)).Q for n in (rows, columns))
    return left @ right.T


@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (rank.EXACT_SIDE + 60, rank.EXACT_SIDE + 20)])
@pytest.mark.parametrize("inner", [1, 7])
def test_a_planted_rank_is_found(shape: tuple[int, int], inner: int) -> None:
    planted = _product(*shape, inner)
    assert rank_of(planted, 1) == rank_of(1e-6 * planted, 2) == Rank(inner)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(5))
    assert rank_of(planted + 0.05 * noise * norm_of(planted) / norm_of(noise), 3) == Rank(inner)  # 0.25 % of the energy


def test_the_rank_holds_99_percent_of_the_squares() -> None:
    """Squared singular values 90, 9, 0.5, 0.5: two hold exactly 99 %, and one of 89.9 and 9 less."""
    values = torch.tensor([90.0, 9.001, 0.5, 0.5]).sqrt()
    assert rank_of(torch.diag(values), 0) == Rank(2)
    values = torch.tensor([90.0, 8.9, 0.6, 0.5]).sqrt()
    assert rank_of(torch.diag(values), 0) == Rank(3)


def test_nothing_has_rank_0_and_a_rank_beyond_the_sketch_is_not_invented(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank, "EXACT_SIDE", 30)
    monkeypatch.setattr(rank, "SKETCH_SIZES", (4, 16))
    assert rank_of(torch.zeros(40, 50), 0) == Rank(0)
    assert rank_of(_product(40, 50, 10), 0) == Rank(10)
    assert rank_of(torch.eye(40), 0) == Rank(16, exceeds=True)


def test_the_factors_of_an_adapter_give_the_norm_and_rank_of_their_product() -> None:
    draw = torch.Generator().manual_seed(0)
    b, a = torch.randn(30, 4, generator=draw), torch.randn(4, 50, generator=draw)
    b[:, 3] = b[:, 2]  # three directions are left
    norm, found = norm_and_rank_of_product(b, a, scale=2.0)
    assert norm == pytest.approx(norm_of(2 * b @ a), rel=1e-6)
    assert found == rank_of(2 * b @ a, 0) and found.value <= 3
    assert norm_and_rank_of_product(torch.zeros(30, 4), a, 2.0) == (0.0, Rank(0))
