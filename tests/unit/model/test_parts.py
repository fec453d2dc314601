"""Models that read images or sound as well: trained on text alone where that is exact, otherwise refused by name."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMultimodalLM

from ftdist.base.errors import ConfigError
from ftdist.config.schema import Attention, RunConfig
from ftdist.method.full import FullFineTuning
from ftdist.model import text_only
from ftdist.model.attention_plan import PLAIN, candidates
from ftdist.model.check import check_model
from ftdist.model.exactness import EXACT, VOCABULARY, Trial
from ftdist.model.load import load_model, model_config
from ftdist.model.parts import auto_class, describe_other_parts, describe_unread_weights, processor_files
from ftdist.model.standin import whole_standin_config
from ftdist.model.standin_sizes import short_limits
from ftdist.model.text_only import why_not_text_only
from tests.helpers.families import OTHER_FAMILIES, QWEN3_VL
from tests.helpers.tiny import LLAMA, save_tiny_model
from tests.models.configs import MULTIMODAL


def config(**fields: object) -> RunConfig:
    made = RunConfig()
    made.model.config = fields
    return made


@pytest.mark.parametrize(
    ("model_type", "kind"),
    [
        ("llama", AutoModelForCausalLM),
        ("gemma3", AutoModelForCausalLM),  # builds all parts
        ("llama4", AutoModelForMultimodalLM),  # AutoModelForCausalLM would leave out the image encoder
        ("mistral3", AutoModelForMultimodalLM),  # AutoModelForCausalLM builds nothing
        ("qwen2_5_vl", AutoModelForMultimodalLM),
    ],
)
def test_the_class_that_builds_every_part(model_type: str, kind: type) -> None:
    assert auto_class(AutoConfig.for_model(model_type)) is kind


def test_only_the_language_part_is_trained() -> None:
    model = AutoModelForMultimodalLM.from_config(AutoConfig.for_model(**QWEN3_VL))
    FullFineTuning().apply(model, RunConfig())
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {name for name, _ in model.named_parameters() if name.startswith("model.visual.")}
    [line] = describe_other_parts(model)
    assert line.startswith("not trained: model.visual (") and "exports contain them unchanged" in line
    text = AutoModelForCausalLM.from_config(AutoConfig.for_model(**LLAMA))
    assert describe_other_parts(text) == []


@pytest.mark.parametrize(
    ("model_type", "names"),
    [("phi4_multimodal", "model.embed_tokens_extend"), ("git", "git.image_encoder, git.visual_projection")],
)
def test_encoders_inside_the_decoder_are_not_trained(model_type: str, names: str) -> None:
    arch = AutoConfig.for_model(**whole_standin_config(AutoConfig.for_model(model_type), 300))
    with torch.device("meta"):
        [line] = describe_other_parts(auto_class(arch).from_config(arch))
    assert line.startswith(f"not trained: {names} (")


SLOW = (
    "Llama-4-Scout-17B-16E",
    "Mistral-Small-3.1-24B",
    "llava-1.5-7b-hf",
    "Qwen2-VL-2B",
    "Qwen3-VL-30B-A3B",
)  # other tests have their kin


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in MULTIMODAL])
@pytest.mark.thorough
def test_text_alone_trains_the_language_part(name: str) -> None:
    """Documents run through the whole stand-in as through plain transformers, each alone."""
    arch = AutoConfig.for_model(**MULTIMODAL[name])
    assert why_not_text_only(arch) == ""
    fields, cpu = whole_standin_config(arch, VOCABULARY), torch.device("cpu")
    plans = candidates(Attention.auto, arch, cpu, torch.float32)
    assert Trial(short_limits(fields, 10**6), cpu).choose(plans, torch.float32).gradient <= EXACT.gradient


@pytest.mark.parametrize("model_type", ["aria", "ernie4_5_vl_moe", "fun_asr_nano", "glm4v", "inkling2", "mistral4"])
def test_no_model_is_refused_because_the_sizes_of_its_stand_in_do_not_fit(model_type: str) -> None:
    assert why_not_text_only(AutoConfig.for_model(model_type)) == ""


def test_a_stand_in_that_cannot_be_built_is_not_blamed_on_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_only, "whole_standin_config", lambda *_: {"model_type": "unheard-of"})
    with pytest.raises(ConfigError, match="ftdist cannot find out whether aria can be fine-tuned on text") as caught:
        check_model(config(model_type="aria"))
    assert "the small stand-in that it makes of the model cannot be built (" in caught.value.found
    assert why_not_text_only(AutoConfig.for_model(**QWEN3_VL)) == "", "a small model is tried itself"


def test_the_facts_count_what_is_trained() -> None:
    model = AutoModelForMultimodalLM.from_config(AutoConfig.for_model(**QWEN3_VL))
    facts = check_model(config(**QWEN3_VL))
    visual = sum(p.numel() for name, p in model.named_parameters() if name.startswith("model.visual."))
    assert facts.trained == facts.parameters - visual and visual
    assert check_model(config(**LLAMA)).trained is None


def test_weights_of_other_shapes_are_refused(tmp_path: Path) -> None:
    made, folder = RunConfig(), save_tiny_model(tmp_path / "model")
    made.model.path = str(folder)
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**fields, "intermediate_size": 96}))
    with pytest.raises(ConfigError, match="do not have the shapes that its config.json says"):
        load_model(made, model_config(made), PLAIN, {"zero_optimization": {"stage": 2}})


@pytest.mark.parametrize(
    ("model_type", "why"),
    [
        ("florence2", "its text goes into an encoder"), ("blip-2", "cannot be fine-tuned on text"),
        ("udop", "its text goes into an encoder"),  # is_decoder=true would not help
        ("molmo2", "in training it computes nothing from text alone (ValueError: `mm_token_type_ids` is required"),
        ("kyutai_speech_to_text", "it computes nothing from text alone (RuntimeError: The size of tensor a (24)"),
    ],
)  # fmt: skip
def test_a_model_that_needs_more_than_text_is_refused(model_type: str, why: str) -> None:
    with pytest.raises(ConfigError, match=f"model.config: {model_type} cannot be fine-tuned on text alone.*") as caught:
        check_model(config(model_type=model_type))
    assert why in caught.value.found


def test_the_files_of_a_folder_that_prepare_images(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "preprocessor_config.json").write_text("{}")
    assert processor_files(str(tmp_path), None) == [tmp_path / "preprocessor_config.json"]
    assert processor_files("", None) == []


def test_weights_that_transformers_does_not_read_are_named(tmp_path: Path) -> None:
    """DeepSeek-V3 has a layer that predicts a second token. transformers skips it without a word."""
    made, folder = RunConfig(), save_tiny_model(tmp_path / "model", **OTHER_FAMILIES["deepseek_v3"])
    made.model.path, file = str(folder), folder / "model.safetensors"
    skipped = ("model.layers.61.eh_proj.weight", "model.layers.61.enorm.weight", "mtp.fc.weight", "model.extra.weight")
    constant = "model.layers.0.self_attn.rotary_emb.inv_freq"
    save_file(load_file(file) | {name: torch.zeros(2) for name in (*skipped, constant)}, file, {"format": "pt"})
    model = load_model(made, model_config(made), PLAIN, {"zero_optimization": {"stage": 2}})
    [line] = describe_unread_weights(model)
    assert line.startswith("left out: model.extra, model.layers.61, mtp (4 tensors in the files of the model)")
    assert describe_unread_weights(AutoModelForCausalLM.from_config(AutoConfig.for_model(**LLAMA))) == []
