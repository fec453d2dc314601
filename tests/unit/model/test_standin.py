"""Small stand-in models."""

from typing import Any, Dict

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from ftdist.config.optim import OPTIMIZERS, OptimizerKind
from ftdist.model.standin import (
    active_dropouts,
    count_parameters,
    fits_in_memory,
    model_type_from_name,
    standin_config,
    whole_standin_config,
)
from tests.helpers.families import FAMILIES

CLASSES = sorted(
    {fields["model_type"] for fields in FAMILIES.values()}
    | {"gemma2", "qwen3_moe", "phi3", "deepseek_v3", "gemma4_text", "mamba2", "bamba", "roberta", "laguna"}
)  # fmt: skip
"""One of each way in which a config describes its layers, experts and heads."""


def _build(fields: Dict[str, Any]) -> Any:
    fields = dict(fields)
    return AutoConfig.for_model(fields.pop("model_type"), **fields)


@pytest.mark.parametrize("model_type", CLASSES)
def test_the_stand_in_of_each_model_type_is_small_and_runs(model_type: str) -> None:
    arch = _build(standin_config(AutoConfig.for_model(model_type), 300))
    assert arch.model_type == model_type
    assert not active_dropouts(arch)
    assert count_parameters(arch) < 1_000_000
    model = AutoModelForCausalLM.from_config(arch).eval()
    with torch.no_grad():
        assert model(input_ids=torch.tensor([[1, 2, 299]]), use_cache=False).logits.shape == (1, 3, 300)


@pytest.mark.parametrize(
    ("model_type", "fields"),
    [
        ("qwen2", {"hidden_size": 192, "num_attention_heads": 3, "num_key_value_heads": 3}),
        ("qwen2", {"hidden_size": 60, "num_attention_heads": 5, "num_key_value_heads": 5}),
        ("gpt2", {"n_embd": 192, "n_head": 3}),
        ("opt", {"hidden_size": 192, "word_embed_proj_dim": 192, "num_attention_heads": 3}),
        ("mpt", {"d_model": 192, "n_heads": 3}),
    ],
)
def test_the_heads_of_a_stand_in_fit_its_hidden_size(model_type: str, fields: Dict[str, Any]) -> None:
    model = AutoModelForCausalLM.from_config(_build(standin_config(AutoConfig.for_model(model_type, **fields), 300)))
    assert model(input_ids=torch.tensor([[1, 2, 299]]), use_cache=False).logits.shape == (1, 3, 300)


def test_a_stand_in_keeps_layer_kinds_head_groups_and_tied_embeddings() -> None:
    gemma = standin_config(AutoConfig.for_model("gemma3_text"), 300)
    assert set(gemma["layer_types"]) == {"sliding_attention", "full_attention"}
    assert gemma["sliding_window"] < 32
    llama = standin_config(AutoConfig.for_model("llama", num_attention_heads=32, num_key_value_heads=8), 300)
    assert (llama["num_attention_heads"], llama["num_key_value_heads"]) == (4, 1)
    gpt2 = standin_config(AutoConfig.for_model("gpt2"), 300)
    assert (gpt2["n_layer"], gpt2["attn_pdrop"]) == (2, 0.0)
    assert standin_config(AutoConfig.for_model("mixtral", tie_word_embeddings=True), 300)["tie_word_embeddings"]


def test_a_stand_in_has_each_kind_of_layer_once() -> None:
    deepseek = standin_config(AutoConfig.for_model("deepseek_v3"), 300)  # 3 dense layers of 61
    assert (deepseek["num_hidden_layers"], deepseek["first_k_dense_replace"]) == (2, 1)
    assert (deepseek["n_group"], deepseek["topk_group"], deepseek["qk_head_dim"]) == (2, 1, 16)
    gemma = standin_config(AutoConfig.for_model("gemma4_text"), 300)
    assert gemma["layer_types"] == ["sliding_attention", "full_attention"]
    assert gemma["per_layer_config"] == {1: {"head_dim": 32}}  # twice the size of the others, as in the model
    mixture = AutoConfig.for_model("gemma4_text", enable_moe_block=True, num_experts=128, top_k_experts=8)
    assert (standin_config(mixture, 300)["num_experts"], standin_config(mixture, 300)["top_k_experts"]) == (4, 2)
    jamba = standin_config(AutoConfig.for_model("jamba"), 300)  # attention in every eighth layer, from 4 on
    assert (jamba["num_hidden_layers"], jamba["attn_layer_period"]) == (5, 8)
    recurrent = standin_config(AutoConfig.for_model("recurrent_gemma"), 300)  # two recurrent layers, then attention
    assert (recurrent["num_hidden_layers"], recurrent["block_types"]) == (2, ["recurrent", "attention"])
    zamba = standin_config(AutoConfig.for_model("zamba"), 300)
    assert zamba["layers_block_type"].count("hybrid") == 2  # these two share a block
    shared = standin_config(AutoConfig.for_model("gemma3n_text"), 300)
    assert shared["num_kv_shared_layers"] == 2 and len(shared["intermediate_size"]) == shared["num_hidden_layers"]
    modern = standin_config(AutoConfig.for_model("modernbert-decoder"), 300)  # its first layer has no norm of attention
    assert modern["layer_types"] == ["full_attention", "sliding_attention", "full_attention"]
    ernie = standin_config(AutoConfig.for_model("ernie4_5_moe"), 300)
    assert (ernie["moe_layer_start_index"], ernie["moe_layer_end_index"]) == (1, 1)


def test_factors_of_rope_have_the_size_of_the_stand_ins_heads() -> None:
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 48, "long_factor": [2.0] * 48}
    phi = AutoConfig.for_model("phi3", original_max_position_embeddings=4096, rope_parameters=rope)
    assert len(standin_config(phi, 300)["rope_parameters"]["long_factor"]) == 8


def test_the_parts_of_a_stand_in_with_images_fit_each_other() -> None:
    def parts(model_type: str) -> Dict[str, Any]:
        return whole_standin_config(AutoConfig.for_model(model_type), 300)

    def sections(model_type: str) -> Any:
        return parts(model_type)["text_config"]["rope_parameters"]["mrope_section"]

    assert sections("ernie4_5_vl_moe") == [3, 3, 2]  # 22, 22 and 20 in the model; the first two must be equal
    assert (sections("glm4v"), sections("qwen2_5_omni_thinker")) == ([2, 3, 3], [2, 3, 3])
    mistral = standin_config(AutoConfig.for_model("mistral4"), 300)  # head_dim is that of both parts of a head
    assert (mistral["head_dim"], mistral["qk_rope_head_dim"]) == (16, 8)
    assert mistral["rope_parameters"]["partial_rotary_factor"] == 0.5
    molmo = parts("molmo2")
    assert all(layer >= -molmo["vision_config"]["num_hidden_layers"] for layer in
               molmo["adapter_config"]["vision_feature_layer"])  # fmt: skip
    inkling = parts("inkling2")
    assert inkling["vision_config"]["text_hidden_size"] == inkling["text_config"]["hidden_size"]


def test_the_tokens_of_a_stand_in_are_in_its_vocabulary() -> None:
    fields = standin_config(AutoConfig.for_model("cwm"), 300)
    assert fields["bos_token_id"] == 299 and fields["eos_token_id"] == [299] * 3
    assert standin_config(AutoConfig.for_model("roberta"), 300)["pad_token_id"] == 1


def test_active_dropouts_are_listed() -> None:
    assert set(active_dropouts(AutoConfig.for_model("gpt2"))) == {"attn_pdrop", "embd_pdrop", "resid_pdrop"}
    assert "layerdrop" in active_dropouts(AutoConfig.for_model("opt", layerdrop=0.1))


def test_dropouts_of_other_heads_are_not_listed() -> None:
    no_dropout = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0, "summary_first_dropout": 0.1}
    assert not active_dropouts(AutoConfig.for_model("gpt2", **no_dropout))
    assert not active_dropouts(AutoConfig.for_model("gpt_neox", classifier_dropout=0.1))


@pytest.mark.parametrize(
    ("repository", "model_type"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", "llama"), ("Qwen/Qwen3-8B-Base", "qwen3"),
        ("me/Gemma-3-4b", "gemma3_text"), ("HuggingFaceTB/SmolLM2-135M-Instruct", "llama"), ("me/unheard-of", ""),
    ],
)  # fmt: skip
def test_the_model_type_is_guessed_from_the_name_of_a_repository(repository: str, model_type: str) -> None:
    assert model_type_from_name(repository) == model_type


def test_a_large_model_does_not_fit_in_memory() -> None:
    adamw = OPTIMIZERS[OptimizerKind.adamw]
    assert fits_in_memory(1_000_000, 2, 2**30, adamw)[0]
    assert not fits_in_memory(8_000_000_000, 8, 24 * 2**30, adamw)[0]
    # 20 bytes a parameter (weight, gradient, master, two moments) on 2 ranks and in the reference: half of the memory.
    assert fits_in_memory(1_000_000, 2, 2 * 60_000_000, adamw) == (True, "0.1 GiB for 1M parameters on 2 ranks")
    assert not fits_in_memory(1_000_000, 2, 2 * 60_000_000 - 1, adamw)[0]
