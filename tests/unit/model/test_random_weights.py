"""Random weights depend on the config and the seed alone, also the vectors that transformers draws."""

import copy
from pathlib import Path
from typing import Any, Tuple

import pytest
import torch
from transformers import AutoConfig

from ftdist.config.schema import Precision
from ftdist.model.load import identity_of_base, load_whole
from ftdist.model.parts import auto_class
from ftdist.model.random_weights import drawn_vectors
from ftdist.run.base_model import base_identity
from tests.helpers.families import FAMILIES, OTHER_FAMILIES
from tests.unit.data_tools import data_config


def arch_of(family: str) -> Any:
    fields = copy.deepcopy({**FAMILIES, **OTHER_FAMILIES}[family])
    return AutoConfig.for_model(fields.pop("model_type"), **fields)


@pytest.mark.parametrize(
    ("family", "endings"),
    [
        ("llama", ()), ("gpt2", ()), ("phi", ()),
        ("gemma3_images", ("mlp.fc1.bias", "mlp.fc2.bias")),  # of the image encoder
        ("gpt_oss", ("self_attn.sinks", "mlp.router.bias")),
        ("qwen3_next", ("linear_attn.A_log",)),
    ],
)  # fmt: skip
def test_the_vectors_that_transformers_draws_are_found(family: str, endings: Tuple[str, ...]) -> None:
    before = torch.get_rng_state()
    found = drawn_vectors(arch_of(family), 0)
    assert {end for end in endings if any(name.endswith(end) for name in found)} == set(endings)
    assert all(name.endswith(endings) for name in found)
    assert torch.get_rng_state().equal(before)
    torch.manual_seed(1)
    again, other = drawn_vectors(arch_of(family), 0), drawn_vectors(arch_of(family), 1)
    for name, vector in found.items():
        assert again[name].equal(vector) and not other[name].equal(vector)


def test_drawn_vectors_are_as_large_as_those_of_transformers() -> None:
    arch = arch_of("gpt_oss")
    arch.num_attention_heads, arch.num_key_value_heads = 400, 400
    plain = dict(auto_class(arch).from_config(arch, dtype=torch.float32).named_parameters())
    for name, vector in drawn_vectors(arch, 0).items():
        if vector.numel() > 100:
            assert float(vector.std()) == pytest.approx(float(plain[name].detach().std()), rel=0.2)
            assert abs(float(vector.mean())) < 0.2 * float(vector.std())


def test_both_precisions_have_the_same_weights(tmp_path: Path) -> None:
    config = data_config(tmp_path)
    config.model.config, config.train.precision = dict(OTHER_FAMILIES["gpt_oss"]), Precision.fp32
    exact = dict(load_whole(config).named_parameters())
    config.train.precision = Precision.bf16
    for name, weight in load_whole(config).named_parameters():
        assert weight.dtype is torch.bfloat16 and weight.equal(exact[name].bfloat16()), name


def test_adapters_of_a_base_with_vectors_of_older_versions_are_not_used_with_it(tmp_path: Path) -> None:
    config = data_config(tmp_path)
    config.model.config = dict(OTHER_FAMILIES["gpt_oss"])
    assert identity_of_base(config) == base_identity(config, drawn=True) != base_identity(config)
    config.model.config = dict(FAMILIES["llama"])
    assert identity_of_base(config) == base_identity(config)
