"""The choice of how documents run: exact against plain transformers, on models that need each kind of plan."""

import copy
import functools
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict

import pytest
import torch
from transformers import AutoConfig

from ftdist.base.errors import ConfigError
from ftdist.config.data import DataConfig
from ftdist.config.schema import Attention, ModelConfig, RunConfig
from ftdist.model import exactness, plan_choice
from ftdist.model.attention_plan import BY_DOCUMENT, PLAIN, AttentionPlan, Layout, candidates
from ftdist.model.exactness import EXACT, Trial
from ftdist.model.forward import forward_logits
from ftdist.model.plan_choice import choose_plan
from ftdist.model.standin import Unfit, standin_config
from ftdist.model.standin_sizes import short_limits
from tests.helpers.tiny import LLAMA

CPU = torch.device("cpu")
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 64,
    "short_factor": [1.0] * 8, "long_factor": [4.0] * 8,
}  # fmt: skip


def trial(model_type: str, one_document: bool = False, **fields: Any) -> Trial:
    """Return the trial of a stand-in of a model type."""
    standin = standin_config(AutoConfig.for_model(model_type), exactness.VOCABULARY)
    return Trial({**short_limits(standin, 10**6), **fields}, CPU, one_document)


def choose(model_type: str, wanted: Attention = Attention.auto, **fields: Any) -> exactness.Choice:
    arch = AutoConfig.for_model(model_type)
    return trial(model_type, **fields).choose(candidates(wanted, arch, CPU, torch.float32), torch.float32)


@functools.cache
def chosen(model_type: str) -> exactness.Choice:
    """Return the choice for the stand-in of a model type as it is. Several tests look at it."""
    return choose(model_type)


@pytest.mark.parametrize(
    ("model_type", "plan"),
    [
        ("llama", BY_DOCUMENT),
        ("mistral", BY_DOCUMENT),  # the documents are longer than its window
        ("stablelm", AttentionPlan(Attention.mask, "sdpa")),  # it has an attention layer of its own
        ("llama4_text", AttentionPlan(Attention.rows, "sdpa", Layout.padded)),  # scales by the position in the row
        ("gemma2", AttentionPlan(Attention.mask, "eager")),  # soft caps
        ("gptj", AttentionPlan(Attention.mask, "eager")),  # it knows its own attention only
        ("gpt_oss", AttentionPlan(Attention.mask, "eager", Layout.masks)),  # sinks; no positions for the masks
        ("bloom", AttentionPlan(Attention.rows, "eager", Layout.padded)),  # ALiBi over the whole row
        ("minimax", AttentionPlan(Attention.rows, "sdpa", Layout.padded, cached=False)),  # lightning attention
    ],
)
def test_the_fastest_exact_plan_is_chosen(model_type: str, plan: AttentionPlan) -> None:
    choice = chosen(model_type)
    assert choice.plan == plan
    assert choice.loss <= EXACT.loss and choice.gradient <= EXACT.gradient
    assert bool(choice.rejected) == (model_type not in ("llama", "mistral"))
    assert not any("KeyError" in reason for reason in choice.rejected)


def test_a_model_that_asks_for_its_balance_loss_is_packed() -> None:
    """transformers would compute the loss with the masks of all kinds of layers, and fail."""
    choice = choose("gpt_oss", output_router_logits=True)
    assert choice.plan == AttentionPlan(Attention.mask, "eager", Layout.masks)


def test_a_rotary_embedding_that_depends_on_the_longest_document_needs_one_forward_for_each() -> None:
    """With longrope, the frequencies of a whole row change if one of its documents is long."""
    choice = choose("phi3", rope_parameters=copy.deepcopy(LONGROPE) | {"original_max_position_embeddings": 16},
                    original_max_position_embeddings=16)  # fmt: skip
    assert choice.plan.layout is Layout.alone
    assert any("documents: the loss is off" in reason for reason in choice.rejected)


def test_a_rotary_embedding_that_grows_with_the_longest_document_needs_one_forward_for_each() -> None:
    dynamic = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    standin = standin_config(AutoConfig.for_model("llama", rope_parameters=dynamic), exactness.VOCABULARY)
    plans = candidates(Attention.auto, AutoConfig.for_model("llama"), CPU, torch.float32)
    assert Trial(short_limits(standin, 10**6), CPU).choose(plans, torch.float32).plan.layout is Layout.alone


@pytest.mark.parametrize("model_type", ["llama", "gpt_neox"])
def test_a_dynamic_rotary_embedding_does_not_depend_on_earlier_documents(model_type: str) -> None:
    """transformers keeps the frequencies of the longest document so far."""
    dynamic = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0, "partial_rotary_factor": 1.0}
    tried = trial(model_type, rope_parameters=dynamic, max_position_embeddings=16)
    model, [first, _, longest, _] = tried._build(PLAIN, torch.float32), tried._documents
    fresh, where = copy.deepcopy(model)(input_ids=first[None]).logits, torch.arange(len(first))
    forward_logits(model, exactness.micro_batch([longest]), torch.arange(len(longest)))
    assert torch.allclose(forward_logits(model, exactness.micro_batch([first]), where), fresh[0], atol=1e-5)


def test_sparse_attention_that_sees_later_tokens_is_refused_if_documents_are_longer_than_its_blocks() -> None:
    with pytest.raises(ConfigError, match="tokens of big_bird can see later tokens in long documents") as caught:
        choose("big_bird", is_decoder=True)
    assert caught.value.fix == "attention_type=original_full in its config"
    choose("big_bird", is_decoder=True, attention_type="original_full")
    arch = AutoConfig.for_model("big_bird", is_decoder=True)
    fields = short_limits(standin_config(arch, exactness.VOCABULARY), 704)  # no document is longer than 704 tokens
    Trial(fields, CPU).choose(candidates(Attention.auto, arch, CPU, torch.float32), torch.float32)


def test_chunks_are_masked_where_no_row_reaches_the_limit_of_another_scale() -> None:
    """Llama 4 scales queries by their position in the row, but only after 8,192 positions."""
    assert choose("llama4_text", floor_scale=8192).plan == AttentionPlan(Attention.mask, "sdpa")


def test_limits_that_no_document_reaches_are_not_shortened() -> None:
    rope = {"original_max_position_embeddings": 900}
    rates = {"compressed_sparse_attention": 4, "heavily_compressed_attention": 128}  # tokens of one key (DeepSeek-V4)
    fields: Dict[str, Any] = {"sliding_window": 4096, "attention_chunk_size": 128, "rope": rope, "hidden_size": 64,
                              "window": None, "use_sliding_window": True, "compress_rates": rates}  # fmt: skip
    shortened = {"attention_chunk_size": 16, "rope": {"original_max_position_embeddings": 16},
                 "compress_rates": {**rates, "heavily_compressed_attention": 16}}  # fmt: skip
    assert short_limits(fields, 1000) == {**fields, **shortened}
    assert short_limits(fields, 100) == fields
    dynamic = {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}, "max_position_embeddings": 512}
    assert short_limits(dynamic, 1000) == {**dynamic, "max_position_embeddings": 16}
    assert short_limits({**dynamic, "rope_parameters": None}, 1000) == {**dynamic, "rope_parameters": None}
    numbered = {"projector_patch_to_query_dict": {1225: 128}}  # Aria
    assert short_limits(numbered, 1000) == numbered
    in_rows = {"floor_scale": 8192, "sliding_window": 4096}
    assert short_limits(in_rows, 4096, 8192) == in_rows
    assert short_limits(in_rows, 4096, 8193) == {**in_rows, "floor_scale": 16}


def test_one_document_in_a_micro_batch_needs_no_isolation() -> None:
    plans = candidates(Attention.auto, AutoConfig.for_model("minimax"), CPU, torch.float32)
    assert trial("minimax", one_document=True).choose(plans, torch.float32).plan.layout is Layout.row


def test_a_plan_that_the_config_asks_for_is_refused_if_it_is_not_exact() -> None:
    with pytest.raises(ConfigError, match="bloom gives other numbers for packed documents") as caught:
        choose("bloom", Attention.documents)
    assert caught.value.fix == "model.attention=auto"


def test_a_model_that_sees_later_tokens_is_refused() -> None:
    with pytest.raises(ConfigError, match="tokens of bert can see later tokens"):
        choose("bert", Attention.mask)


def test_the_setting_with_which_a_model_sees_later_tokens_is_named() -> None:
    with pytest.raises(ConfigError, match="tokens of gemma3_text can see later tokens") as caught:
        choose("gemma3_text", use_bidirectional_attention=True)
    assert caught.value.fix.startswith("use_bidirectional_attention=false in its config")


def test_a_model_that_cannot_be_trained_on_text_of_any_length_is_refused() -> None:
    with pytest.raises(Unfit, match="cannot be trained on documents of 40 and 23 tokens \\(ValueError: If training"):
        choose("reformer", is_decoder=True, axial_pos_embds=False)


def test_bf16_is_checked_as_well() -> None:
    plans = candidates(Attention.auto, AutoConfig.for_model("llama"), CPU, torch.bfloat16)
    assert trial("llama").choose(plans, torch.bfloat16).plan == BY_DOCUMENT


def test_generation_without_a_usable_cache_is_found() -> None:
    assert chosen("llama").plan.cached
    assert not chosen("minimax").plan.cached
    assert not chosen("mamba").plan.cached  # it ignores the cache: each token would be the first one


@pytest.mark.parametrize("model_type", ["roberta", "camembert", "xlm-roberta", "xmod"])
def test_positions_that_begin_after_the_padding_id_are_those_of_each_document_alone(model_type: str) -> None:
    tried = trial(model_type, is_decoder=True)
    tried._documents[1][5] = tried._arch.pad_token_id  # it is not counted
    loss, gradient, problem = tried.measure(BY_DOCUMENT, torch.float32)
    assert not problem, (loss, gradient)


def _config(folder: Path) -> RunConfig:
    return RunConfig(model=ModelConfig(), data=DataConfig(max_seq_len=512), cache_dir=str(folder))


def test_the_choice_is_kept_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arch = AutoConfig.for_model("stablelm")
    first = choose_plan(_config(tmp_path), arch, CPU, torch.float32)
    monkeypatch.setattr(plan_choice, "Trial", None)  # a second comparison would fail
    assert choose_plan(_config(tmp_path), arch, CPU, torch.float32) == first
    assert first.plan.implementation == "sdpa"


def test_a_cache_is_tried_with_answers_that_are_longer_than_every_document(tmp_path: Path) -> None:
    """With longrope, all frequencies change when a text becomes longer than 64 tokens. Those in the cache do not."""
    arch = AutoConfig.for_model(
        "phi3", hidden_size=64, num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=256,
        rope_parameters=copy.deepcopy(LONGROPE), original_max_position_embeddings=64,
    )  # fmt: skip
    config = _config(tmp_path)
    config.data.max_seq_len, config.train.num_samples, config.train.sample_tokens = 64, 0, 16
    assert choose_plan(config, arch, CPU, torch.float32).plan == BY_DOCUMENT
    config.train.num_samples = 1
    assert choose_plan(config, arch, CPU, torch.float32).plan == replace(BY_DOCUMENT, cached=False)


def test_a_table_of_positions_that_is_shorter_than_a_row_of_documents_is_tried(tmp_path: Path) -> None:
    """GPT-Neo cuts its causal mask out of a table that is as long as its positions."""
    arch = AutoConfig.for_model(
        "gpt_neo", hidden_size=64, num_layers=2, attention_types=[[["global", "local"], 1]], num_heads=4,
        max_position_embeddings=140,
    )  # fmt: skip
    config = _config(tmp_path)
    config.data.max_seq_len, config.train.num_samples = 140, 0
    layouts = {}
    for config.batch.micro_batch_size in (1, 2):
        layouts[config.batch.micro_batch_size] = choose_plan(config, arch, CPU, torch.float32).plan.layout
    assert layouts[1] is not Layout.padded and layouts[2] is Layout.padded


def test_a_model_without_a_stand_in_runs_one_document_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_choice, "standin_config", lambda *_: {"model_type": "unheard-of"})
    choice = choose_plan(_config(tmp_path), AutoConfig.for_model("llama"), CPU, torch.float32)
    assert choice.plan.layout is Layout.padded
    assert "the small stand-in that ftdist makes of the model cannot be built (" in choice.unproven
    small = choose_plan(_config(tmp_path), AutoConfig.for_model(**LLAMA), CPU, torch.float32)
    assert (small.plan, small.unproven) == (BY_DOCUMENT, ""), "a small model is tried itself"


@pytest.mark.parametrize(("problem", "reason"), [
    ({"rms_norm_eps": float("nan")}, "has a loss that is not finite"),
    ({"model_type": "cohere", "logit_scale": 0.0}, "has gradients that are all 0"),
    ({"model_type": "gemma2", "final_logit_softcapping": 0.0}, "has gradients that are not finite"),
    ({"model_type": "reformer", "is_decoder": True, "axial_pos_embds": False}, "cannot be trained on documents of 40"),
])  # fmt: skip
def test_a_stand_in_that_is_of_no_use_is_not_blamed_on_the_model(
    problem: Dict[str, Any], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    useless = standin_config(AutoConfig.for_model(problem.get("model_type", "llama")), exactness.VOCABULARY)
    monkeypatch.setattr(plan_choice, "standin_config", lambda *_: {**useless, **problem})
    with pytest.raises(ConfigError, match="ftdist makes a small stand-in of a model") as caught:
        choose_plan(_config(tmp_path), AutoConfig.for_model("llama"), CPU, torch.float32)
    assert reason in caught.value.found and "the model itself is too large to be tried" in caught.value.expected
    assert choose_plan(_config(tmp_path), AutoConfig.for_model(**LLAMA), CPU, torch.float32).plan == BY_DOCUMENT


def test_a_model_that_transformers_computes_in_fp32_only_is_refused_in_bf16() -> None:
    plans = candidates(Attention.auto, AutoConfig.for_model("xlnet"), CPU, torch.bfloat16)
    with pytest.raises(ConfigError, match="transformers cannot train a xlnet model in bf16") as caught:
        trial("xlnet", attn_type="uni").choose(plans, torch.bfloat16)
    assert caught.value.fix == "train.precision=fp32"
