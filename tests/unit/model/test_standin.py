"""Stand-ins, and what is compared: a small model keeps what makes its class what it is."""

from typing import Any, Dict

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from ftdist.model.standin import class_by_name, count_parameters, dropouts, fits, standin
from ftdist.verify.compare import ALLOWED, Deviation, Precision, worst_gradient
from tests.families import FAMILIES

CLASSES = sorted({fields["model_type"] for fields in FAMILIES.values()} | {"gemma2", "qwen3_moe", "phi3"})


def _build(fields: Dict[str, Any]) -> Any:
    fields = dict(fields)
    return AutoConfig.for_model(fields.pop("model_type"), **fields)


@pytest.mark.parametrize("model_type", CLASSES)
def test_the_default_of_a_class_shrinks_to_a_model_that_runs(model_type: str) -> None:
    arch = _build(standin(AutoConfig.for_model(model_type), 300))
    assert arch.model_type == model_type
    assert not dropouts(arch)
    assert count_parameters(arch) < 1_000_000
    model = AutoModelForCausalLM.from_config(arch).eval()
    with torch.no_grad():
        assert model(input_ids=torch.tensor([[1, 2, 299]])).logits.shape == (1, 3, 300)


def test_what_a_class_has_is_kept() -> None:
    gemma = standin(AutoConfig.for_model("gemma3_text"), 300)
    assert set(gemma["layer_types"]) == {"sliding_attention", "full_attention"}
    assert gemma["sliding_window"] < 32
    llama = standin(AutoConfig.for_model("llama", num_attention_heads=32, num_key_value_heads=8), 300)
    assert (llama["num_attention_heads"], llama["num_key_value_heads"]) == (4, 1)
    gpt2 = standin(AutoConfig.for_model("gpt2"), 300)
    assert (gpt2["n_layer"], gpt2["attn_pdrop"]) == (2, 0.0)
    assert standin(AutoConfig.for_model("mixtral", tie_word_embeddings=True), 300)["tie_word_embeddings"]


def test_dropout_is_seen() -> None:
    assert set(dropouts(AutoConfig.for_model("gpt2"))) == {"attn_pdrop", "embd_pdrop", "resid_pdrop"}


def test_a_dropout_of_a_head_that_is_not_there_is_none() -> None:
    no_dropout = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0, "summary_first_dropout": 0.1}
    assert not dropouts(AutoConfig.for_model("gpt2", **no_dropout))
    assert not dropouts(AutoConfig.for_model("gpt_neox", classifier_dropout=0.1))


@pytest.mark.parametrize(
    ("repository", "model_type"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", "llama"), ("Qwen/Qwen3-8B-Base", "qwen3"),
        ("me/Gemma-3-4b", "gemma3_text"), ("HuggingFaceTB/SmolLM2-135M-Instruct", "llama"), ("me/unheard-of", ""),
    ],
)  # fmt: skip
def test_a_class_is_read_from_a_name_or_not_at_all(repository: str, model_type: str) -> None:
    assert class_by_name(repository) == model_type


def test_what_does_not_fit() -> None:
    assert fits(1_000_000, 2, 2**30)[0]
    assert not fits(8_000_000_000, 8, 24 * 2**30)[0]


def test_a_gradient_is_measured_against_its_own_norm_or_a_share_of_the_whole() -> None:
    expected = {"large": torch.tensor([1.0, 0.0]), "zero": torch.tensor([0.0])}
    found = {"large": torch.tensor([1.0, 1e-4]), "zero": torch.tensor([1e-6])}
    assert worst_gradient(found, expected, small=1e-3) == (pytest.approx(1e-3), "zero")
    assert worst_gradient(found, expected, small=1e-1) == (pytest.approx(1e-4), "large")


def test_nan_is_beyond_what_is_allowed() -> None:
    fine = {"loss": 0.0, "grad_norm": 0.0, "gradient": 0.0, "parameter": "w", "update": 0.0, "heldout": 0.0}
    assert not Deviation(**fine).beyond(ALLOWED[Precision.fp32])
    [text] = Deviation(**{**fine, "gradient": float("nan")}).beyond(ALLOWED[Precision.fp32])
    assert "gradient differs by nan" in text and "(w)" in text
