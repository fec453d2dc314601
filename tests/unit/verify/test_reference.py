"""A choice without a reference is refused by name."""

from types import SimpleNamespace

import pytest

from ftdist.base.errors import FtdistError


def test_an_optimizer_without_a_reference_is_refused() -> None:
    import torch

    from ftdist.verify.reference_optimizer import PlainOptimizer

    optim = SimpleNamespace(optimizer=SimpleNamespace(name="new"), weight_decay=0.0, lora_plus_ratio=None)
    with pytest.raises(FtdistError, match="optim.optimizer=new has no reference"):
        PlainOptimizer({"w": torch.ones(2)}, optim)


def test_a_method_without_a_reference_is_refused() -> None:
    import torch

    from ftdist.verify.reference_method import apply_plainly

    with pytest.raises(FtdistError, match="method=new has no reference"):
        apply_plainly(torch.nn.Linear(2, 2), SimpleNamespace(kind=SimpleNamespace(name="new")))
