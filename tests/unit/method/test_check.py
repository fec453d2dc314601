"""The program that checks a model and a method before a run."""

import io
import json
from pathlib import Path
from typing import Any

import pytest

from ftdist.base.errors import ConfigError
from ftdist.config.method import MethodKind
from ftdist.config.schema import RunConfig
from ftdist.method.check import check_run, main, method_on_meta, trained_table
from ftdist.model.standin import default_model_config, whole_standin_config
from ftdist.run.model_facts import describe_method, read_facts, write_facts
from tests.helpers.families import QWEN3_VL
from tests.helpers.tiny import LLAMA, save_tiny_model
from tests.unit.data_tools import data_config


@pytest.mark.thorough
def test_stored_facts_are_found_until_the_model_folder_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ftdist.config.frozen import dump_config

    config = data_config(tmp_path, f"model.path={save_tiny_model(tmp_path / 'model')}")
    config.model.config = {}
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(dump_config(config).encode())))
    assert read_facts(config) is None
    assert main(["-"]) == 0
    facts = read_facts(config)
    assert facts is not None and facts.max_positions == LLAMA["max_position_embeddings"]
    written = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({**written, "num_hidden_layers": 1}))
    assert read_facts(config) is None


def test_the_program_refuses_an_invalid_model_with_one_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from ftdist.config.frozen import dump_config

    config = data_config(tmp_path, "model.config.model_type=nonsense")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(dump_config(config).encode())))
    assert main(["-"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: model.config.model_type=nonsense is") and "\n  fix:      " in error
    assert not (tmp_path / "cache").exists()


def small(**method: Any) -> RunConfig:
    config = RunConfig()
    config.model.config, config.model.tokenizer = dict(LLAMA), "bytes"
    for name, value in method.items():
        setattr(config.method, name, value)
    return config


LAYER = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128 + 2 * 64
LAYER_LORA = (2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 128)) * 4


@pytest.mark.parametrize(
    ("settings", "trained", "added"),
    [
        ({"kind": "lora", "r": 4}, 2 * LAYER_LORA, 2 * LAYER_LORA),
        ({"kind": "lora", "r": 4, "layers_to_transform": [-1]}, LAYER_LORA, LAYER_LORA),
        ({"kind": "lora", "r": 4, "target_modules": ["q_proj", "layers.0.mlp.*"]}, 3328, 3328),
        ({"kind": "lora", "r": 4, "use_dora": True}, 2 * (LAYER_LORA + 512), 2 * (LAYER_LORA + 512)),
        ({"kind": "lora", "r": 4, "target_modules": ["lm_head"]}, 4 * (64 + 259), 4 * (64 + 259)),
        ({"kind": "lora", "r": 4, "modules_to_save": ["lm_head"]}, 2 * LAYER_LORA + 259 * 64, 2 * LAYER_LORA),
        ({"kind": "partial", "last_layers": 1}, LAYER, 0),
        ({"kind": "partial", "trainable": ["norms"]}, 5 * 64, 0),
        ({"kind": "partial", "trainable": ["embeddings", "mlp.up_proj.*"]}, 259 * 64 + 2 * 64 * 128, 0),
    ],
)  # fmt: skip
@pytest.mark.thorough
def test_the_number_of_trained_parameters(settings: Any, trained: int, added: int, tmp_path: Path) -> None:
    settings["kind"] = MethodKind[settings["kind"]]
    config = small(**settings)
    config.cache_dir = str(tmp_path)
    facts = check_run(config)
    assert (facts.trained, facts.added) == (trained, added)
    write_facts(config, facts)
    assert f"{trained:,} of {facts.parameters + added:,} parameters are trained" in describe_method(config)
    config.method.kind = MethodKind.full
    assert read_facts(config) is None, "facts of another method"


@pytest.mark.parametrize(
    ("settings", "found", "fix"),
    [
        ({"kind": "lora", "target_modules": ["q_prj"]}, "'q_prj' matches no linear layer", "[q_proj]"),
        ({"kind": "lora", "target_modules": ["embed_tokens"]}, "matches no linear layer", "target_modules="),
        ({"kind": "lora", "modules_to_save": ["head"]}, "'head' matches no module", "method.modules_to_save="),
        ({"kind": "lora", "layers_to_transform": [2]}, "there is no layer 2", "[-1]"),
        ({"kind": "partial", "trainable": ["norm_"]}, "'norm_' matches no parameter", "method.trainable="),
        ({"kind": "partial", "trainable": ["q_proj"]}, "'q_proj' matches no parameter", "method.trainable=[q_proj.*]"),
        ({"kind": "partial", "trainable": ["layers.0"]}, "matches no parameter", "method.trainable=[layers.0.*]"),
        ({"kind": "lora", "target_modules": ["lm_head"], "modules_to_save": ["lm_head"]},
         "'lm_head' names only modules that method.modules_to_save trains whole", "leave it out of"),
        ({"kind": "lora", "target_modules": ["all-linear", "q_proj"], "modules_to_save": ["self_attn"]},
         "'q_proj' names only modules that method.modules_to_save trains whole", "leave it out of"),
        ({"kind": "lora", "target_modules": ["all-linear", "lm_head"], "layers_to_transform": [0]},
         "'lm_head' of method.target_modules names no module in these layers", "leave 'lm_head' out of"),
        ({"kind": "lora", "target_modules": ["q_proj", "layers.1.mlp.*"], "layers_to_transform": [0]},
         "'layers.1.mlp.*' of method.target_modules names no module", "method.layers_to_transform=null"),
        ({"kind": "lora", "modules_to_save": ["layers"]}, "trains all linear layers whole", "or method=partial"),
        ({"kind": "partial", "last_layers": 3}, "the model has 2 layers", "method.last_layers=2"),
    ],
)  # fmt: skip
def test_names_that_match_nothing_are_refused_before_anything_starts(settings: Any, found: str, fix: str) -> None:
    settings["kind"] = MethodKind[settings["kind"]]
    with pytest.raises(ConfigError) as caught:
        check_run(small(**settings))
    assert found in caught.value.found and fix in caught.value.fix


def test_a_name_of_parameters_that_are_never_trained_is_refused(tmp_path: Path) -> None:
    config = small(
        kind=MethodKind.partial, trainable=["norms", "expert_bias"]
    )  # which only transformers' own code sets
    arch = whole_standin_config(default_model_config("afmoe"), LLAMA["vocab_size"])
    config.model.config, config.cache_dir = arch, str(tmp_path)
    with pytest.raises(ConfigError, match="'expert_bias' names only parameters that are never trained"):
        check_run(config)


def test_layers_of_parts_for_images_do_not_count() -> None:
    config = small(kind=MethodKind.partial, last_layers=1)
    vision = {**QWEN3_VL["vision_config"], "depth": 5}  # more than the 2 layers of the language part
    config.model.config = {**QWEN3_VL, "vision_config": vision}
    trained = [name for name, p in method_on_meta(config).named_parameters() if p.requires_grad]
    assert trained and all(name.startswith("model.language_model.layers.1.") for name in trained)
    config.method.last_layers = 3
    with pytest.raises(ConfigError, match="the model has 2 layers"):
        method_on_meta(config)
    config.method.last_layers, config.method.trainable = 1, ["visual.*"]
    with pytest.raises(ConfigError, match=r"'visual\.\*' names only parameters that are never trained"):
        method_on_meta(config)


def test_layers_with_the_names_of_experts_get_no_adapter() -> None:
    """PEFT would put adapters beside the tensors of all experts instead, which could not be merged."""
    config = small(kind=MethodKind.lora)
    config.model.config = whole_standin_config(default_model_config("deepseek_v3"), LLAMA["vocab_size"])
    adapted = [name for name, _ in method_on_meta(config).named_parameters() if ".lora_A." in name]
    assert adapted and all(".self_attn." in name for name in adapted)
    config.method.target_modules = ["q_a_proj", "shared_experts.*"]
    with pytest.raises(ConfigError, match=r"'shared_experts\.\*' cannot have an adapter .*: PEFT takes the name"):
        method_on_meta(config)


def test_layers_that_rwkv_divides_in_evaluation_get_no_adapter() -> None:
    config = small(kind=MethodKind.lora)
    config.model.config = whole_standin_config(default_model_config("rwkv"), LLAMA["vocab_size"])
    adapted = {name.split(".lora_A")[0].split(".", 3)[-1] for name, _ in method_on_meta(config).named_parameters()
               if ".lora_A." in name}  # fmt: skip
    assert adapted == {"attention.key", "attention.receptance", "attention.value", "feed_forward.key",
                       "feed_forward.receptance"}  # fmt: skip


def test_an_adapter_of_a_tied_head_is_refused_with_the_reason() -> None:
    config = small(kind=MethodKind.lora, target_modules=["all-linear", "lm_head"])
    config.model.config = {**LLAMA, "tie_word_embeddings": True}
    with pytest.raises(ConfigError, match="'lm_head' is the output head, which shares its weight with the embedding"):
        method_on_meta(config)


@pytest.mark.parametrize("kind", [MethodKind.lora, MethodKind.partial])
def test_new_tokens_must_be_trained(kind: MethodKind) -> None:
    config = small(kind=kind, **({"last_layers": 1} if kind is MethodKind.partial else {}))
    config.model.new_special_tokens = ["<new>"]
    with pytest.raises(ConfigError, match="trains neither their embeddings nor their output weights") as caught:
        method_on_meta(config)
    if kind is MethodKind.lora:
        assert "method.modules_to_save=[embed_tokens,lm_head]" in caught.value.fix
        config.method.modules_to_save = ["embed_tokens", "lm_head"]
    else:
        config.method.trainable = ["embeddings", "head"]
    method_on_meta(config)


def test_the_table_of_what_is_trained() -> None:
    model = method_on_meta(small(kind=MethodKind.lora, r=4, target_modules=["q_proj"], modules_to_save=["lm_head"]))
    assert trained_table(model) == [
        "2 × q_proj.lora_A [4 × 64]",
        "2 × q_proj.lora_B [64 × 4]",
        "1 × lm_head [259 × 64]",
    ]
