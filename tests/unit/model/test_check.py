"""The check of a model before a run, and the facts that are stored about it."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from ftdist.base.errors import ConfigError
from ftdist.config.schema import Attention, Precision, Recompute, RunConfig
from ftdist.model import parts
from ftdist.model.check import check_model
from ftdist.model.load import model_config
from ftdist.model.plan_choice import prove_trainable
from ftdist.run.model_facts import ModelFacts, check_fit, length_problem, read_facts, write_facts
from tests.helpers.tiny import LLAMA
from tests.models.alone import tiny_config_of
from tests.unit.data_tools import data_config


def model(**fields: Any) -> RunConfig:
    return alone(**{**LLAMA, **fields})


def alone(**fields: Any) -> RunConfig:
    config = RunConfig()
    config.model.config = fields
    return config


WORDS = {"num_layers": 1, "vocab_size": 99}
TWO_TEXT_PARTS = {"model_type": "musicgen", "text_encoder": {"model_type": "t5", "num_heads": 2, **WORDS},
                  "audio_encoder": {"model_type": "encodec"},
                  "decoder": {"model_type": "musicgen_decoder", **WORDS}}  # fmt: skip
SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 99}


@pytest.mark.parametrize(
    ("config", "found", "fix"),
    [
        (model(model_type="nonsense"), "model.config.model_type=nonsense is not a model type that transformers knows",
         "llama"),
        (model(model_type="lama"), "model_type=lama is not", "model.config.model_type=llama"),
        (model(model_type=None), "model.config.model_type is not set", "model_type=llama"),
        (model(hidden_size=63), "model.config.*63.*is not a multiple of the number of attention heads", "model.config"),
        (model(num_attention_heads=0), "model.config.num_attention_heads=0", "correct model.config.num_"),
        (model(num_key_value_heads=3), "cannot build a model from model.config: RuntimeError", "correct model.config"),
        (model(hidden_size=12), "cannot build a model from model.config: RuntimeError", "correct model.config"),
        pytest.param(alone(**TWO_TEXT_PARTS), "cannot build a model from model.config: AttributeError",
                     "correct model.config", id="two parts for text"),
        (model(nonsense_key=1), "model.config.nonsense_key is not a field of a llama config", "remove model.config."),
        (model(hiden_size=32), "model.config.hiden_size is not a field", "model.config.hidden_size=32"),
        (model(hidden_size="wide"), 'model.config.hidden_size="wide"', "correct model.config.hidden_size"),
        (model(model_type="bert"), "bert reads text in both directions", "model.config.is_decoder=true"),
        (model(model_type="xlm"), "xlm reads text in both directions", "causal=true"),
        (alone(model_type="xlnet", d_model=32, n_layer=1, n_head=2), "xlnet reads text", "type=uni"),
        (model(model_type="opt", layerdrop=0.25), "layerdrop=0.25, so opt skips layers", "model.config.layerdrop=0.0"),
        (alone(model_type="bart", is_encoder_decoder=False, decoder_layerdrop=0.2, d_model=32, **WORDS),
         "decoder_layerdrop=0.2, so bart skips layers", "model.config.decoder_layerdrop=0.0"),
        (model(model_type="roberta"), "roberta reads text in both directions", "is_decoder=true"),
        (model(model_type="t5"), "no causal language model of the type t5", "use another model"),
    ],
    ids=lambda value: str(sorted(value.model.config.items() - LLAMA.items())) if isinstance(value, RunConfig) else "",
)  # fmt: skip
def test_a_model_that_cannot_be_fine_tuned_is_refused(config: RunConfig, found: str, fix: str) -> None:
    with pytest.raises(ConfigError, match=found) as caught:
        check_model(config)
    assert caught.value.expected and fix in caught.value.fix
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize(
    ("fields", "limit", "table"),
    [
        ({}, 512, False),
        ({"rope_theta": 1e4, "head_dim": 8, "bos_token_id": 1}, 512, False),
        ({"model_type": "gpt2", "n_positions": 64, "n_embd": 32, "n_head": 2, "n_layer": 1}, 64, True),
        ({"model_type": "opt", "max_position_embeddings": 64, "ffn_dim": 32, "word_embed_proj_dim": 32}, 64, True),
        ({"model_type": "gptj", "n_positions": 64, "n_embd": 32, "n_head": 2, "n_layer": 1, "rotary_dim": 4}, 64, True),
        ({"model_type": "gpt_neox"}, 2048, False),
        ({"model_type": "mpt", "d_model": 32, "n_heads": 2, "n_layers": 1, "max_seq_len": 64}, 64, True),
        ({"model_type": "bloom"}, None, False),
        ({"model_type": "bert", "is_decoder": True}, 512, True),
        ({"model_type": "roberta", "is_decoder": True, "max_position_embeddings": 66}, 64, True),  # padding id 1
        ({"model_type": "mixtral", "num_key_value_heads": 1, "num_local_experts": 2}, 4096 * 32, False),
        ({"model_type": "qwen3_moe", "head_dim": 8, "num_key_value_heads": 1, "num_experts": 9}, 32768, False),
        ({"model_type": "mamba", "state_size": 4}, None, False),
    ],
    ids=lambda value: value.get("model_type", "llama") if isinstance(value, dict) else "",
)
def test_the_facts_about_a_model_that_can_be_fine_tuned(fields: dict[str, Any], limit: Any, table: bool) -> None:
    config = RunConfig()
    config.model.config = {**(SMALL if "model_type" in fields else LLAMA), **fields}
    if fields.get("model_type") in ("gpt2", "gptj", "bloom", "mamba", "mpt", "opt"):
        for name in ("intermediate_size", *(("num_attention_heads",) if fields["model_type"] == "mamba" else ())):
            del config.model.config[name]
    facts = check_model(config)
    assert (facts.max_positions, facts.has_position_table) == (limit, table)
    assert facts.model_type == fields.get("model_type", "llama") and facts.recomputes
    assert 0 < facts.parameters < 1_000_000


def test_rows_longer_than_a_position_table_are_refused_and_otherwise_reported(tmp_path: Path) -> None:
    config = data_config(tmp_path, "data.max_seq_len=2048")
    rotary = ModelFacts("llama", 1, max_positions=1024, has_position_table=False, recomputes=True)
    check_fit(config, rotary)
    assert length_problem(config, rotary) == "data.max_seq_len=2,048, but the model was made for 1,024 positions"
    table = ModelFacts("gpt2", 1, max_positions=1024, has_position_table=True, recomputes=True)
    with pytest.raises(ConfigError, match="made for 1,024 positions") as caught:
        check_fit(config, table)
    assert caught.value.fix == "data.max_seq_len=1024"
    config.data.max_seq_len = 1024
    check_fit(config, table)
    assert length_problem(config, rotary) == length_problem(config, table) == ""


def test_gradient_checkpointing_is_refused_if_the_model_does_not_support_it(tmp_path: Path) -> None:
    config, facts = data_config(tmp_path), ModelFacts("old", 1, None, has_position_table=False, recomputes=False)
    with pytest.raises(ConfigError, match="train.gradient_checkpointing=full"):
        check_fit(config, facts)
    config.train.gradient_checkpointing = Recompute.none
    check_fit(config, facts)


@pytest.mark.parametrize(("content", "found"), [
    ('{"do_sample": false, "num_return_sequences": 3}', r"num_return_sequences.*\(got 3\)"),
    ('{"max_new_tokens": -3}', "`max_new_tokens` must be greater than 0, but is -3"),
    ('{"cache_implementation": "nonsense"}', r"`cache_implementation` \(nonsense\)"),
    ("[1]", "'list' object"), ("{nonsense", "is not JSON: Expecting property name"), ("", "is not JSON"),
])  # fmt: skip
def test_a_generation_config_that_transformers_cannot_read_is_refused(content: str, found: str, tmp_path: Path) -> None:
    AutoConfig.for_model(**LLAMA).save_pretrained(tmp_path)
    config = RunConfig(cache_dir=str(tmp_path / "cache"))
    config.model.path, file = str(tmp_path), tmp_path / "generation_config.json"
    file.write_text('{"temperature": 0.5, "eos_token_id": [1, 2]}')  # a warning of transformers, which reads it
    facts = check_model(config)
    write_facts(config, facts)
    assert read_facts(config) == facts
    file.write_text(content)
    assert read_facts(config) is None, "the model would not be checked again"
    with pytest.raises(ConfigError, match=f"{file}.*{found}") as caught:
        check_model(config)
    assert caught.value.fix == "correct or remove generation_config.json"


def test_a_library_that_the_code_of_a_model_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class NeedsTimm:
        @staticmethod
        def from_config(*args: Any, **kwargs: Any) -> None:
            raise ImportError("TimmWrapperModel requires the timm library.\nInstall it with `pip install timm`.")

    monkeypatch.setattr(parts, "auto_class", lambda arch: NeedsTimm)
    with pytest.raises(ConfigError, match="needs a library that is not installed: TimmWrapperModel") as caught:
        check_model(model())
    assert caught.value.fix == "pip install timm"


def test_facts_are_not_stored_if_the_cache_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    config = data_config(tmp_path)
    write_facts(config, ModelFacts("llama", 1, None, has_position_table=False, recomputes=True))
    assert read_facts(config) is None


def test_a_model_that_is_computed_in_fp32_only_is_refused_in_bf16() -> None:
    """The fixes lead to a run: first attn_type=uni, then train.precision=fp32."""
    config = alone(model_type="xlnet", d_model=32, n_layer=1, n_head=2, vocab_size=99, attn_type="uni")
    config.train.precision = Precision.bf16
    with pytest.raises(ConfigError, match="cannot train a xlnet model in bf16: RuntimeError: expected sc") as caught:
        check_model(config)
    assert caught.value.fix == "train.precision=fp32"
    config.train.precision = Precision.fp32
    assert check_model(config).model_type == "xlnet"


def test_weights_that_must_stay_in_fp32_are_named(tmp_path: Path) -> None:
    """transformers keeps the router of Inkling 2 in fp32, but DeepSpeed gives all parameters one type."""
    config = data_config(tmp_path)
    config.model.config = {**tiny_config_of("inkling2_text").to_dict(), "model_type": "inkling2_text"}
    config.train.precision = Precision.bf16
    with pytest.raises(ConfigError, match=r"weights in fp32 \(.* weights, for.*but DeepSpeed trains all") as caught:
        prove_trainable(config, model_config(config))
    assert caught.value.fix == "train.precision=fp32"
    config.train.precision = Precision.fp32
    assert prove_trainable(config, model_config(config)) is None


BIG_BIRD = {**SMALL, "model_type": "big_bird", "is_decoder": True}


@pytest.mark.parametrize(
    ("config", "attention", "found", "fix"),
    [
        (alone(**BIG_BIRD), Attention.auto, "tokens of big_bird can see later tokens", "attention_type=original_full"),
        (model(model_type="cohere", logit_scale=0.0), Attention.auto, "gradients that are all 0 .logit_scale=0.0 may",
         "correct model.config.logit_scale"),
        (alone(**SMALL, model_type="gemma2", head_dim=8, num_key_value_heads=1), Attention.documents,
         "gemma2 gives other numbers for packed documents", "model.attention=auto"),
    ],
    ids=["sparse attention", "no gradient", "attention of the config"],
)  # fmt: skip
def test_documents_that_cannot_run_through_a_model_are_found_before_the_ranks_start(
    config: RunConfig, attention: Attention, found: str, fix: str
) -> None:
    config.model.attention = attention
    with pytest.raises(ConfigError, match=found) as caught:
        check_model(config)
    assert fix in caught.value.fix


def test_a_model_that_is_refused_for_longer_rows_only_is_checked_again_for_them(tmp_path: Path) -> None:
    config = data_config(tmp_path)
    config.model = alone(**BIG_BIRD).model
    config.data.max_seq_len = 512
    facts = check_model(config)
    write_facts(config, facts)
    assert facts.longest_row == 512 and read_facts(config) == facts
    config.data.max_seq_len = 1024
    assert read_facts(config) is None
