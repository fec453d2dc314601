"""The export of a model is tried on a stand-in before the run."""

import re
from pathlib import Path
from typing import Any, Dict

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from ftdist.base.errors import ConfigError
from ftdist.base.json_files import write_json
from ftdist.model import export_trial, parts, save
from ftdist.model.attention_plan import BY_DOCUMENT
from ftdist.model.export_trial import prove_export, try_export
from ftdist.model.fixed import fixed_parameters, keep_fixed
from ftdist.model.load import load_model, model_config
from ftdist.model.standin import default_model_config, whole_standin_config
from tests.helpers.tiny import LLAMA
from tests.unit.data_tools import data_config


def fields(model_type: str) -> Dict[str, Any]:
    return whole_standin_config(default_model_config(model_type), export_trial.VOCABULARY)


@pytest.mark.parametrize(
    ("model_type", "why"),
    [
        ("apertus", "buffers without a dimension"),
        ("deepseek_v3", "a buffer that transformers reads in fp32"),
        ("olmo_hybrid", "parameters that transformers reads in fp32"),
        ("ernie4_5_moe", "a parameter that is never trained"),
        ("zaya", "a value that transformers sets when it reads the model"),
        ("gemma3", "parts for images"),
    ],
)
def test_exports_that_once_failed(model_type: str, why: str) -> None:
    assert try_export(fields(model_type), torch.bfloat16) == "", why


def test_tied_weights_whose_first_name_is_not_the_one_that_transformers_keeps() -> None:
    decoder = AutoConfig.for_model("camembert", is_decoder=True)
    assert try_export(whole_standin_config(decoder, export_trial.VOCABULARY), torch.float32) == ""


@pytest.mark.thorough
def test_a_type_whose_saved_form_cannot_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``AutoModelForCausalLM`` saves the language part of Mllama alone, which it cannot read again."""
    for module in (export_trial, parts, save):
        monkeypatch.setattr(module, "auto_class", lambda arch: AutoModelForCausalLM)
    config = data_config(tmp_path, "model.config.model_type=mllama")
    with pytest.raises(ConfigError, match="cannot save a small mllama model, .* in bf16 and .*: .*MllamaTextConfig"):
        prove_export(config, default_model_config("mllama"))
    assert not list((tmp_path / "cache" / "checked").glob("export-*.json")), "the reason may be this machine"


def test_a_small_model_is_tried_itself_if_its_stand_in_is_not_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, tried = AutoConfig.for_model(**LLAMA), []

    def fails_unless_real(fields: Any, *_: Any) -> str:
        tried.append(fields["hidden_size"])
        return "" if fields["hidden_size"] == small.hidden_size == 32 else "it is another one"

    monkeypatch.setattr(export_trial, "try_export", fails_unless_real)
    with pytest.raises(ConfigError, match="cannot save a llama model with these sizes in bf16"):
        prove_export(data_config(tmp_path), small)
    small = AutoConfig.for_model(**{**LLAMA, "hidden_size": 32})
    prove_export(data_config(tmp_path), small)
    assert tried[-1] == 32
    with pytest.raises(ConfigError, match="cannot save a small llama model, the stand-in that ftdist makes of this"):
        prove_export(data_config(tmp_path), default_model_config("llama"))


@pytest.mark.parametrize(
    ("model_type", "problem"),
    [
        ("marian", "size mismatch for model.decoder.embed_tokens.weight|RuntimeError"),  # decoder_vocab_size
        ("deepseek_v4", "IndexError"),  # a table of the experts of each token
        ("inkling2_text", "it computes 300 logits for 305 tokens"),  # unpadded_vocab_size
        ("gptj", ""),  # a head with a bias
    ],
)
@pytest.mark.thorough
def test_a_model_that_does_not_work_with_new_tokens(model_type: str, problem: str) -> None:
    found = try_export(fields(model_type), torch.float32, export_trial.VOCABULARY + 5)
    assert re.search(problem, found) if problem else not found
    assert try_export(fields(model_type), torch.float32) == ""


def test_a_model_whose_two_attentions_disagree_is_refused(tmp_path: Path) -> None:
    """transformers adds ALiBi twice to the scores of Falcon with eager attention, and once with SDPA."""
    arch = AutoConfig.for_model("falcon", alibi=True)
    with pytest.raises(ConfigError, match="transformers computes falcon in two ways: its logits with eager attention"):
        prove_export(data_config(tmp_path, "model.config.model_type=falcon"), arch)
    assert try_export(fields("falcon"), torch.bfloat16) == ""


def test_a_model_that_reads_its_prompt_in_both_directions_is_refused_with_this_reason(tmp_path: Path) -> None:
    """PaliGemma is a prefix language model. With SDPA, transformers also drops the causal mask of a text."""
    arch = default_model_config("paligemma")
    config = data_config(tmp_path)
    config.model.config = {}
    with pytest.raises(
        ConfigError, match="paligemma reads text in both directions: with its default .*=true"
    ) as caught:
        prove_export(config, arch)
    assert caught.value.fix.endswith("a copy with text_config.use_bidirectional_attention=false in its config.json")
    config.model.config = {"model_type": "paligemma"}
    with pytest.raises(ConfigError) as caught:
        prove_export(config, arch)
    assert caught.value.fix.startswith("model.config.text_config.use_bidirectional_attention=false")
    arch.text_config.use_bidirectional_attention = False
    prove_export(config, arch)


def test_new_rows_are_tried_only_if_the_run_adds_them(tmp_path: Path) -> None:
    arch = default_model_config("inkling2_text")
    arch.vocab_size = arch.unpadded_vocab_size = 1000
    config = data_config(tmp_path, "model.config.model_type=inkling2_text", "model.tokenizer=bytes")
    prove_export(config, arch, 1000)
    with pytest.raises(
        ConfigError, match="cannot be enlarged from 1000 to 1001 rows: it computes 300 logits"
    ) as caught:
        prove_export(config, arch, 1001)
    assert caught.value.fix == "use the tokenizer of the model (model.tokenizer)"
    config.model.pad_vocab_to_multiple_of = 64
    prove_export(config, arch, 1000)  # its logits are those of the real tokens


def test_a_tensor_that_is_read_differently_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    saved = export_trial.save_model

    def lose(weights: Dict[str, torch.Tensor], *args: Any, **options: Any) -> None:
        weights["model.norm.weight"] = weights["model.norm.weight"].double() + 1e-12  # more digits than are read
        saved(weights, *args, **options)

    monkeypatch.setattr(export_trial, "save_model", lose)
    assert try_export(dict(LLAMA), torch.float32) == "'model.norm.weight' differs from the tensor that was written"


def test_a_success_is_kept_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = data_config(tmp_path)
    config.model.config = {"model_type": "llama"}
    arch = model_config(config)
    prove_export(config, arch)
    monkeypatch.setattr(export_trial, "try_export", lambda *_: "the logits differ")
    prove_export(config, arch)
    [file] = (tmp_path / "cache" / "checked").glob("export-*.json")
    write_json(file, {"problem": "the disk was full"})  # an earlier version kept problems
    with pytest.raises(
        ConfigError, match="small llama model, the stand-in .* in bf16 and read it again: the logits differ"
    ):
        prove_export(config, arch)


def test_parameters_that_the_model_never_trains_are_frozen_at_every_stage(tmp_path: Path) -> None:
    """transformers freezes them only with ZeRO-3. A checkpoint of one stage would then not fit another one."""
    values = fields("afmoe")
    arch = AutoConfig.for_model(values.pop("model_type"), **values)
    AutoModelForCausalLM.from_config(arch).save_pretrained(tmp_path / "model")
    config = data_config(tmp_path, f"model.path={tmp_path / 'model'}")
    config.model.config = {}
    model = load_model(config, model_config(config), BY_DOCUMENT, {"zero_optimization": {"stage": 2}})
    frozen = {name.rpartition(".")[2] for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"expert_bias"}


def test_parameters_that_the_model_never_trains_are_kept_and_those_that_are_frozen_later_are_not() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    model[0].bias.requires_grad_(False)
    keep_fixed(model)
    model[1].requires_grad_(False)
    fixed = fixed_parameters(model)
    assert list(fixed) == ["0.bias"] and fixed["0.bias"].equal(model[0].bias)
    assert not any(parameter is fixed["0.bias"] for parameter in model.parameters())
