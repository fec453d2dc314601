"""The metadata of an exported model's card, read back with the hub's own library."""

from pathlib import Path
from typing import Any, Dict

import pytest
from huggingface_hub import ModelCard

from ftdist.checkpoint.gguf_export import _card
from ftdist.checkpoint.model_card import model_card
from ftdist.config.data import SourceConfig
from ftdist.config.method import MethodKind
from ftdist.config.schema import RunConfig

STATE = {"step": 40, "trained_tokens": 1234, "eval_loss": 2.5, "evaluated_step": 40}


def metadata(config: RunConfig) -> Dict[str, Any]:
    return ModelCard(model_card(config, "step-00000040", STATE, "llama")).data.to_dict()


def test_a_hub_model_and_hub_data_are_named() -> None:
    config = RunConfig()
    config.model.hub = "org/base"
    config.data.sources = {"chats": SourceConfig(hub="org/chats"), "mine": SourceConfig(path="mine.jsonl")}
    found = metadata(config)
    assert found["base_model"] == "org/base" and found["datasets"] == ["org/chats"]
    assert found["pipeline_tag"] == "text-generation" and found["library_name"] == "transformers"
    assert "license" not in found, "it is not known"


def test_the_builtin_model_has_its_hub_id_and_license() -> None:
    config = RunConfig()
    config.model.builtin = "smollm2-135m-instruct"
    found = metadata(config)
    assert (found["base_model"], found["license"]) == ("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0")
    assert "datasets" not in found


def test_a_folder_passes_its_base_model_and_license_on(tmp_path: Path) -> None:
    """A model that is trained again from an export keeps the license of the first base model."""
    config = RunConfig()
    config.model.builtin = "smollm2-135m-instruct"
    (tmp_path / "README.md").write_text(model_card(config, "step-00000040", STATE, "llama"), encoding="utf-8")
    again = RunConfig()
    again.model.path = str(tmp_path)
    found = metadata(again)
    assert (found["base_model"], found["license"]) == ("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0")


@pytest.mark.parametrize("text", ["no metadata", "---\n[\n---\n", "---\nlicense: [1, 2\n---\n"])
def test_a_card_that_cannot_be_read_does_not_stop_an_export(text: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(text, encoding="utf-8")
    config = RunConfig()
    config.model.path = str(tmp_path)
    assert "license" not in metadata(config)


def test_a_name_with_yaml_in_it_stays_a_name() -> None:
    config = RunConfig(name="a: b\n---")
    config.model.hub = "org/base"
    assert metadata(config)["base_model"] == "org/base"


@pytest.mark.parametrize(
    ("model_type", "versions"), [("llama", "4.57 and 5.23"), ("gemma4_text", "5.23"), ("x", "5.23")]
)
def test_the_versions_are_those_with_which_the_type_was_tested(model_type: str, versions: str) -> None:
    """Gemma 4 does not exist in version 4.57."""
    config = RunConfig()
    assert f"| tested with transformers | {versions} |" in model_card(config, "step-00000040", STATE, model_type)
    config.method.kind = MethodKind.lora  # an adapter is read with PEFT
    adapter, merged = (model_card(config, "step-00000040", STATE, model_type, None, text) for text in ("", "merged"))
    assert "| method | lora: r 16, lora_alpha 32, target_modules all-linear |" in adapter
    assert "| tested with transformers | 5.23 |" in adapter and "| made to be read by | PEFT; other" in adapter
    assert "| made to be read by | vLLM" in merged
    gguf = _card(merged, ["model-F16.gguf: equal"])
    assert gguf.endswith(
        "| made to be read by | llama.cpp and Ollama |\n| merging | merged |\n| GGUF | model-F16.gguf: equal |\n"
    )


def test_the_arguments_and_the_date_of_the_chat_template_are_named() -> None:
    config = RunConfig()
    facts = {"chat_template_kwargs": {"enable_thinking": False, "style": "a|b"}, "chat_template_date": "2024-07-26"}
    card = model_card(config, "step-00000040", STATE, "llama", facts)
    assert '| arguments of the chat template | `{"enable_thinking": false, "style": "a\\|b"}`' in card
    assert "| date in the chat template | 2024-07-26, in training and in this folder. For" in card
    assert "chat template" not in model_card(config, "step-00000040", STATE, "llama")
