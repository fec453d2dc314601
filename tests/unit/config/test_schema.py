"""The typed config: ranges, fields against each other, reading and writing."""

import re
from pathlib import Path
from typing import Any, Callable

import pytest

from ftdist.base.errors import EXIT_USAGE, ConfigError
from ftdist.config.checks import check_config
from ftdist.config.data import SourceConfig
from ftdist.config.frozen import dump_config, load_config, parse_config
from ftdist.config.optim import Schedule
from ftdist.config.schema import Compile, Kernels, Offload, Recompute, RunConfig
from ftdist.data.main import main as prepare_main


def good() -> RunConfig:
    config = RunConfig()
    config.model.hub = "org/name"
    config.data.sources["mine"] = SourceConfig(path="x.jsonl")
    config.train.max_steps = 10
    return config


def test_a_good_config_passes_and_round_trips() -> None:
    config = good()
    check_config(config)
    assert parse_config(dump_config(config), "x") == config


@pytest.mark.parametrize(("written", "read"), [("true", Recompute.full), ("false", Recompute.none)])
def test_a_run_yaml_with_an_earlier_value_is_read(written: str, read: Recompute) -> None:
    text = dump_config(good()).replace("gradient_checkpointing: full", f"gradient_checkpointing: {written}")
    assert written in text and parse_config(text, "x").train.gradient_checkpointing is read


def put(path: str, value: Any) -> Callable[[RunConfig], None]:
    def change(config: RunConfig) -> None:
        node: Any = config
        *parents, leaf = path.split(".")
        for name in parents:
            node = node[name] if isinstance(node, dict) else getattr(node, name)
        if isinstance(node, dict):
            node[leaf] = value
        else:
            setattr(node, leaf, value)

    return change


BAD = [
    ([("model.path", "m")], "model sets path and hub"),
    ([("model.hub", None)], "model sets none of path, hub, builtin, config"),
    (
        [("model.hub", None), ("model.config", {"model_type": "llama"})],
        "model.config is set, but model.tokenizer is not",
    ),
    ([("model.hub", None), ("model.builtin", "gpt5")], "model.builtin=gpt5"),
    ([("data.sources", {})], "data.sources is empty"),
    ([("data.sources.mine.hub", "a/b")], "data.sources.mine sets path and hub"),
    ([("data.sources.mine", SourceConfig(builtin="wiki"))], "data.sources.mine.builtin=wiki"),
    ([("data.sources.mine.weight", -1.0)], "data.sources.mine.weight=-1"),
    ([("data.sources.mine.max_documents", 0)], "data.sources.mine.max_documents=0"),
    ([("data.heldout", {"test": SourceConfig()})], "data.heldout.test sets none of path, hub, builtin"),
    ([("data.heldout", {"heldout": SourceConfig(path="x")}), ("data.heldout_share", 0.1)], "the name heldout"),
    ([("data.heldout_share", 0.6)], "data.heldout_share=0.6"),
    ([("data.chat_template_kwargs", {"add_generation_prompt": True})], "has add_generation_prompt"),
    ([("data.chat_template_kwargs", {"enable_thinking": "False"})], "enable_thinking is the text 'False'"),
    ([("data.max_seq_len", 4)], "data.max_seq_len=4"),
    ([("batch.global_batch_size", 0)], "batch.global_batch_size=0"),
    ([("batch.micro_batch_size", 0)], "batch.micro_batch_size=0"),
    ([("objective.router_aux_loss", -0.1)], "objective.router_aux_loss=-0.1"),
    ([("optim.lr", -1.0)], "optim.lr=-1"),
    ([("optim.lr", float("nan"))], "optim.lr=nan"),
    ([("optim.beta2", 1.0)], "optim.beta2=1"),
    ([("optim.min_lr_ratio", 2.0)], "optim.min_lr_ratio=2"),
    ([("optim.schedule", Schedule.wsd)], "optim.schedule=wsd needs optim.decay_steps > 0, but optim.decay_steps=0"),
    (
        [("train.gradient_checkpointing", Recompute.none), ("train.recompute_every", 2)],
        "train.recompute_every=2 has no effect with train.gradient_checkpointing=none",
    ),
    (
        [("train.gradient_checkpointing", Recompute.none), ("train.offload_activations", True)],
        "train.offload_activations=true has no effect with train.gradient_checkpointing=none",
    ),
    ([("train.recompute_every", 0)], "train.recompute_every=0"),
    (
        [("model.kernels", Kernels.liger), ("train.compile", Compile.layers)],
        "model.kernels=liger and train.compile=layers are both set",
    ),
    ([("report.price_per_device_hour", -1.0)], "report.price_per_device_hour=-1"),
    ([("report.forgetting.texts", 1)], "report.forgetting.texts=1"),
    ([("report.forgetting.texts", -1)], "report.forgetting.texts=-1"),
    ([("report.forgetting.tokens", 0)], "report.forgetting.tokens=0"),
    ([("debug.profile", "5-3")], "debug.profile=5-3"),
    ([("debug.profile", "0-3")], "debug.profile=0-3"),
    ([("debug.profile", "3")], "debug.profile=3"),
    ([("optim.decay_steps", 3)], "optim.decay_steps=3 has no effect with optim.schedule=cosine"),
    ([("optim.warmup_steps", 11)], "optim.warmup_steps = 11, but the run has"),
    ([("zero.stage", 4)], "zero.stage=4"),
    (
        [("zero.stage", 0), ("zero.offload_optimizer", Offload.cpu)],
        "zero.offload_optimizer does not work with zero.stage=0",
    ),
    (
        [("optim.paged", True), ("zero.offload_optimizer", Offload.cpu)],
        "optim.paged=true and zero.offload_optimizer=cpu both move optimizer states to host memory",
    ),
    ([("zero.offload_param", Offload.cpu)], "zero.offload_param does not work with zero.stage=2"),
    ([("zero.expert_groups", 4)], "zero.expert_groups=4 has no effect with zero.stage=2"),
    ([("train.epochs", 1.0)], "train.epochs and train.max_steps are both set"),
    ([("train.max_steps", None)], "neither train.epochs nor train.max_steps is set"),
    ([("train.max_steps", None), ("train.epochs", 0.0)], "train.epochs=0"),
    ([("train.max_steps", 0)], "train.max_steps=0"),
    ([("train.eval_every", 0)], "train.eval_every=0"),
    ([("launch.nproc_per_node", 0)], "launch.nproc_per_node=0"),
    ([("seed", -1)], "seed=-1"),
]


@pytest.mark.parametrize(("changes", "says"), BAD, ids=[says for _, says in BAD])
def test_a_wrong_value_is_named(changes: Any, says: str) -> None:
    config = good()
    for path, value in changes:
        put(path, value)(config)
    with pytest.raises(ConfigError) as error:
        check_config(config)
    assert says in str(error.value).replace("sets both of", "both of").replace("sets neither of", "neither of")
    assert error.value.exit_code == EXIT_USAGE and "expected:" in str(error.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [("name: ${oc.env:HOME}", "interpolation"), ("trian: {}", "trian"), ("train: {max_steps: many}", "many")],
)
def test_a_run_yaml_with_interpolations_or_wrong_keys_is_refused(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        load_config(path)
    assert says in str(error.value) and "run.yaml" in str(error.value)


def test_a_damaged_run_yaml_is_refused(tmp_path: Path) -> None:
    """A setting that was cut off must not become a default."""
    path, text = tmp_path / "run.yaml", dump_config(good())
    path.write_text(text)
    assert load_config(path) == good()
    sections = [text.index(f"\n{key}:") + 1 for key in ("data", "zero", "debug")]
    for end in [0, 1, 600, len(text) // 2, len(text) - 1, *sections]:
        path.write_text(text[:end])
        with pytest.raises(ConfigError, match=re.escape(str(path))):
            load_config(path)
    path.write_bytes(text.encode()[:300] + b"\xff\xfe" + text.encode()[302:])
    with pytest.raises(ConfigError, match=re.escape(str(path))):
        load_config(path)


def test_preparation_checks_the_data_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, config = tmp_path / "run.yaml", good()
    config.data.sources["mine"].path = None
    path.write_text(dump_config(config))
    assert prepare_main(["prepare", str(path)]) == EXIT_USAGE
    assert "data.sources.mine sets none of path, hub, builtin" in capsys.readouterr().err


def test_a_missing_run_yaml_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*No such file"):
        load_config(tmp_path / "run.yaml")
