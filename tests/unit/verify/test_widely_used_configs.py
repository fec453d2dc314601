"""Widely used configs: the stand-in that ``ftdist verify`` checks can be built, and has plain transformers' numbers."""

from typing import List

import pytest
import torch
from transformers import AutoConfig

from ftdist.config.schema import Attention
from ftdist.model.attention_plan import candidates
from ftdist.model.exactness import EXACT, VOCABULARY, Trial
from ftdist.model.standin import active_dropouts, standin_config
from ftdist.model.standin_sizes import short_limits
from tests.models.configs import CONFIGS

CPU = torch.device("cpu")
SLOW = ("Jamba-v0.1", "mamba-2.8b", "rwkv-4-430m")  # their plain implementations loop over tokens


def _names() -> List[object]:
    """Return all names. Models whose type has come before are slow tests: little is different in their stand-ins."""
    names: List[object] = []
    types: List[str] = []
    for name, fields in CONFIGS.items():
        slow = fields["model_type"] in types or name in SLOW
        names.append(pytest.param(name, marks=[pytest.mark.slow] if slow else []))
        types.append(fields["model_type"])
    return names


def test_there_are_at_least_40() -> None:
    assert len(CONFIGS) >= 40


@pytest.mark.parametrize("name", _names())
@pytest.mark.thorough
def test_the_stand_in_gives_the_numbers_of_plain_transformers(name: str) -> None:
    arch = AutoConfig.for_model(**CONFIGS[name])
    fields = standin_config(arch, VOCABULARY)
    assert not active_dropouts(AutoConfig.for_model(**fields))
    plans = candidates(Attention.auto, arch, CPU, torch.float32)
    choice = Trial(short_limits(fields, 10**6), CPU).choose(plans, torch.float32)
    assert choice.loss <= EXACT.loss and choice.gradient <= EXACT.gradient
