"""The differences between an engine and the reference, as numbers."""

import pytest
import torch

from ftdist.config.schema import Precision
from ftdist.verify.compare import ALLOWED, Deviation, largest, largest_difference, worst_gradient

NAN = float("nan")


def test_the_difference_of_a_gradient_is_relative_to_its_norm_or_to_a_share_of_the_whole_norm() -> None:
    expected = {"large": torch.tensor([1.0, 0.0]), "zero": torch.tensor([0.0])}
    found = {"large": torch.tensor([1.0, 1e-4]), "zero": torch.tensor([1e-6])}
    assert worst_gradient(found, expected, small=1e-3) == (pytest.approx(1e-3), "zero")
    assert worst_gradient(found, expected, small=1e-1) == (pytest.approx(1e-4), "large")


def test_nan_exceeds_every_limit() -> None:
    fine = {"loss": 0.0, "grad_norm": 0.0, "gradient": 0.0, "parameter": "w", "update": 0.0, "heldout": 0.0}
    assert not Deviation(**fine).beyond(ALLOWED[Precision.fp32])
    [text] = Deviation(**{**fine, "gradient": NAN}).beyond(ALLOWED[Precision.fp32])
    assert "gradient differs by nan" in text and "(w)" in text


def test_nan_counts_as_the_largest_number() -> None:
    assert largest([1.0, NAN, 2.0]) != largest([1.0, NAN, 2.0])
    assert largest_difference([1.0, NAN], [1.0, 1.0]) != 0.0
    ones = {name: torch.ones(2) for name in "ab"}
    difference, name = worst_gradient({"a": torch.ones(2), "b": torch.tensor([NAN, 1.0])}, ones, 0)
    assert difference != difference and name == "b"
