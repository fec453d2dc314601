"""Models whose folder has Python code that builds them (``model.trust_remote_code``)."""

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from ftdist.base.errors import ConfigError
from ftdist.checkpoint.protocol import HF
from ftdist.checkpoint.saver import hf_files
from ftdist.config.schema import Attention, RunConfig
from ftdist.data.tokenizer import load_tokenizer
from ftdist.model import plan_choice
from ftdist.model.attention_plan import Layout
from ftdist.model.export_trial import prove_export
from ftdist.model.load import load_whole, model_config
from ftdist.model.save import save_model
from ftdist.verify.trial import make_trial
from tests.helpers.own_code import save_model_with_own_code
from tests.helpers.tiny import tiny_config

CPU = torch.device("cpu")


def config_of(folder: Path, model_type: str, *overrides: str) -> RunConfig:
    save_model_with_own_code(folder / "model", model_type)
    return tiny_config(folder, "model.trust_remote_code=true", *overrides)


@pytest.mark.parametrize("model_type", ["own", "llama"])
def test_each_document_is_a_row_of_its_own(model_type: str, tmp_path: Path) -> None:
    """The stand-in is built by the code of the model, also if transformers has a model of the same type."""
    config = config_of(tmp_path, model_type)
    choice = plan_choice.choose_plan(config, model_config(config), CPU, torch.float32)
    assert choice.plan.layout is Layout.padded and not choice.unproven
    assert choice.rejected == [plan_choice.OWN_CODE]


def test_a_faster_way_that_is_requested_is_compared(tmp_path: Path) -> None:
    config = config_of(tmp_path, "llama", "model.attention=documents")
    with pytest.raises(ConfigError, match="gives other numbers for packed documents"):
        plan_choice.choose_plan(config, model_config(config), CPU, torch.float32)


@pytest.mark.parametrize("model_type", ["own", "llama"])
def test_checkpoints_and_exports_contain_the_code(model_type: str, tmp_path: Path) -> None:
    config = config_of(tmp_path, model_type)
    prove_export(config, model_config(config))
    model = load_whole(config)
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for name, content in hf_files(model, load_tokenizer(config)).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    folder = tmp_path / HF
    for file in (tmp_path / "model").glob("*.py"):
        assert (folder / file.name).read_text() == file.read_text()
    arch = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    assert type(arch).__name__ == "OwnConfig"
    save_model(weights, arch, folder, trust_remote_code=True)  # reads and compares it


def test_code_that_is_not_trusted_is_not_named_in_exports(tmp_path: Path) -> None:
    config = config_of(tmp_path, "llama")
    config.model.trust_remote_code = False
    arch = model_config(config)
    assert not hasattr(arch, "auto_map")
    assert plan_choice.choose_plan(config, arch, CPU, torch.float32).plan.backend is Attention.documents


def test_the_stand_in_of_verify_has_the_code(tmp_path: Path) -> None:
    config = config_of(tmp_path, "own")
    (scratch := tmp_path / "scratch").mkdir()
    steps = make_trial(config, scratch, 2, 2, quick=True).steps_config
    assert type(load_whole(steps)).__name__ == "OwnForCausalLM" and steps.model.path != config.model.path
