"""What DeepSpeed is given: computed from the run config, frozen, and read back."""

import json
from pathlib import Path
from typing import Any, Dict

import pytest

from ftdist.base.errors import ConfigError
from ftdist.config.schema import RunConfig
from ftdist.plan.batch import BatchPlan, plan_batch, plan_resumed
from ftdist.plan.deepspeed import check_frozen, deepspeed_settings, read_settings
from ftdist.plan.deepspeed_keys import KNOWN_KEYS
from tests.helpers.tiny import tiny_config


def _settings(tmp_path: Path, *overrides: str) -> dict:
    config: RunConfig = tiny_config(tmp_path, *overrides)
    return deepspeed_settings(config, plan_batch(config.batch, 2, config.data.max_seq_len))


def test_every_owned_value_comes_from_the_run_config(tmp_path: Path) -> None:
    settings = _settings(
        tmp_path, "zero.stage=3", "zero.offload_optimizer=cpu", "zero.offload_param=cpu", "train.precision=bf16",
        "optim.max_grad_norm=0.7", "batch.micro_batch_size=2",
    )  # fmt: skip
    assert settings["zero_optimization"]["stage"] == 3
    assert settings["zero_optimization"]["offload_optimizer"]["device"] == "cpu"
    assert settings["zero_optimization"]["offload_param"]["device"] == "cpu"
    assert settings["zero_optimization"]["leaf_module"] == {"classes": [], "names": [], "name_suffixes": []}
    assert settings["bf16"] == {"enabled": True}
    assert settings["gradient_clipping"] == 0.7
    assert settings["train_micro_batch_size_per_gpu"] == 2
    assert settings["gradient_accumulation_steps"] == 2
    # DeepSpeed would check it against the world size while zero.Init has no process group yet.
    assert "train_batch_size" not in settings


def test_further_keys_are_merged(tmp_path: Path) -> None:
    settings = _settings(
        tmp_path, "zero.deepspeed.zero_optimization.reduce_bucket_size=1000", "zero.deepspeed.comms_logger.enabled=true"
    )
    assert settings["zero_optimization"]["reduce_bucket_size"] == 1000
    assert settings["zero_optimization"]["stage"] == 2
    assert _settings(tmp_path)["zero_optimization"]["reduce_bucket_size"] == "auto"
    assert _settings(tmp_path, "zero.stage=0")["zero_optimization"] == {"stage": 0}
    assert settings["comms_logger"] == {"enabled": True}


@pytest.mark.parametrize(
    ("override", "names"),
    [
        ("zero.deepspeed.zero_optimization.stage=3", ["zero_optimization.stage=3", "gives 2"]),
        ("zero.deepspeed.gradient_clipping=5.0", ["gradient_clipping=5.0", "gives 1.0"]),
        ("zero.deepspeed.train_batch_size=4", ["train_batch_size=4", "batch.global_batch_size"]),
        ("zero.deepspeed.optimizer.type=Adam", ["optimizer", "optim"]),
        ("zero.deepspeed.fp16.enabled=true", ["fp16", "train.precision"]),
        ("zero.deepspeed.bfloat16.enabled=false", ["bfloat16", "train.precision"]),
    ],
)
def test_a_key_with_another_owner_is_refused(tmp_path: Path, override: str, names: list) -> None:
    with pytest.raises(ConfigError) as error:
        _settings(tmp_path, override)
    assert all(name in str(error.value) for name in names), str(error.value)


@pytest.mark.parametrize(
    ("override", "found", "fix"),
    [
        ("wall_clock_breakdwn=true", "wall_clock_breakdwn", "zero.deepspeed.wall_clock_breakdown=true"),
        ("zero_optimization.overlapcomm=false", "zero_optimization.overlapcomm",
         "zero.deepspeed.zero_optimization.overlap_comm=false"),
        ("zero_optimization.offload_param.buffers=5", "zero_optimization.offload_param.buffers", ""),
    ],
)  # fmt: skip
def test_a_key_that_deepspeed_does_not_know_is_refused(tmp_path: Path, override: str, found: str, fix: str) -> None:
    with pytest.raises(ConfigError) as error:
        _settings(tmp_path, f"zero.deepspeed.{override}")
    assert error.value.found == f"DeepSpeed has no key '{found}'" and fix in error.value.fix


def test_the_known_keys_are_those_of_the_installed_deepspeed() -> None:
    """The keys of ZeRO are the fields of its schemas. Those of the top level are recorded when DeepSpeed reads them."""
    from deepspeed.runtime.config import DeepSpeedConfig
    from deepspeed.runtime.zero import config as zero

    asked_for = set()

    class Asked(dict):  # type: ignore[type-arg]
        def __getitem__(self, key: str) -> Any:
            asked_for.add(key)
            return super().__getitem__(key)

        def get(self, key: str, default: Any = None) -> Any:
            asked_for.add(key)
            return super().get(key, default)

        def __contains__(self, key: object) -> bool:
            asked_for.add(str(key))
            return super().__contains__(key)

        def keys(self) -> Any:
            return self

    DeepSpeedConfig(Asked(train_batch_size=1, train_micro_batch_size_per_gpu=1, gradient_accumulation_steps=1))
    assert asked_for == KNOWN_KEYS[""]
    for place, model in (
        ("zero_optimization", zero.DeepSpeedZeroConfig),
        ("zero_optimization.offload_param", zero.DeepSpeedZeroOffloadParamConfig),
        ("zero_optimization.offload_optimizer", zero.DeepSpeedZeroOffloadOptimizerConfig),
    ):
        fields = model.model_fields
        assert {*fields, *(field.alias for field in fields.values() if field.alias)} == KNOWN_KEYS[place]


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    made = tiny_config(
        tmp_path, "batch.micro_batch_size=1", "batch.grad_accum_steps=4", "zero.stage=3",
        "zero.offload_optimizer=cpu", "optim.max_grad_norm=0.7",
        "zero.deepspeed.zero_optimization.reduce_bucket_size=5e7", "zero.deepspeed.comms_logger.enabled=true",
    )  # fmt: skip
    return made


@pytest.fixture
def file(tmp_path: Path, config: RunConfig) -> Path:
    """As it is frozen for two ranks."""
    path = tmp_path / "deepspeed.json"
    path.write_text(json.dumps(deepspeed_settings(config, _plan(config, 2))))
    return path


def _plan(config: RunConfig, ranks: int) -> BatchPlan:
    return plan_resumed(config.batch, ranks, config.data.max_seq_len)


def _edit(file: Path, key: str, value: Any) -> None:
    settings: Dict[str, Any] = json.loads(file.read_text())
    *parents, last = key.split(".")
    place = settings
    for name in parents:
        place = place[name]
    if value is None:
        del place[last]
    else:
        place[last] = value
    file.write_text(json.dumps(settings))


def test_ranks_read_exactly_what_was_frozen(file: Path, config: RunConfig) -> None:
    check_frozen(file, config)
    assert read_settings(file, _plan(config, 2)) == deepspeed_settings(config, _plan(config, 2))


def test_on_other_ranks_only_the_accumulation_changes(file: Path, config: RunConfig) -> None:
    frozen = json.loads(file.read_text())
    assert frozen["gradient_accumulation_steps"] == 4
    for ranks, accumulation in ((1, 8), (4, 2), (8, 1)):
        assert read_settings(file, _plan(config, ranks)) == {**frozen, "gradient_accumulation_steps": accumulation}


def test_ranks_refuse_a_file_with_another_micro_batch(file: Path, config: RunConfig) -> None:
    config.batch.micro_batch_size = 2
    with pytest.raises(ConfigError) as error:
        read_settings(file, _plan(config, 2))
    assert "micro-batches of 1 row, run.yaml has batch.micro_batch_size=2" in error.value.found
    assert "delete deepspeed.json and run ftdist resume RUN_DIR, which writes it again" in error.value.fix


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("zero_optimization.stage", 2, "has zero_optimization.stage=2, but run.yaml gives 3"),
        ("zero_optimization.reduce_bucket_size", 1000, "=1000, but run.yaml gives 50000000.0"),
        ("zero_optimization.offload_optimizer.device", "nvme", "device=nvme, but run.yaml gives cpu"),
        ("gradient_clipping", 1.0, "gradient_clipping=1.0, but run.yaml gives 0.7"),
        ("bf16.enabled", True, "bf16.enabled=true, but run.yaml gives false"),
        ("gradient_accumulation_steps", 2, "gradient_accumulation_steps=2, but run.yaml gives 4"),
        ("train_micro_batch_size_per_gpu", 4, "train_micro_batch_size_per_gpu=4, but run.yaml gives 1"),
        ("wall_clock_breakdown", True, "has wall_clock_breakdown=true, but run.yaml does not give it"),
    ],
)
def test_a_value_that_was_edited_is_refused(file: Path, config: RunConfig, key: str, value: Any, says: str) -> None:
    _edit(file, key, value)
    with pytest.raises(ConfigError) as error:
        check_frozen(file, config)
    assert says in error.value.found and "ftdist resume RUN_DIR" in error.value.fix


def test_a_key_that_an_older_version_did_not_write_may_be_missing(file: Path, config: RunConfig) -> None:
    _edit(file, "zero_force_ds_cpu_optimizer", None)
    check_frozen(file, config)
    assert "zero_force_ds_cpu_optimizer" not in read_settings(file, _plan(config, 2))


def test_a_run_of_an_earlier_version_keeps_the_size_of_its_bucket(tmp_path: Path) -> None:
    made, file = tiny_config(tmp_path), tmp_path / "deepspeed.json"
    settings = deepspeed_settings(made, _plan(made, 2))
    settings["zero_optimization"] = {"stage": 2, "reduce_bucket_size": 50_000_000}
    file.write_text(json.dumps(settings))
    check_frozen(file, made)
    assert read_settings(file, _plan(made, 2))["zero_optimization"] == {"stage": 2, "reduce_bucket_size": 50_000_000}
    _edit(file, "zero_optimization.reduce_bucket_size", 40_000_000)
    with pytest.raises(ConfigError, match="reduce_bucket_size=40000000, but run.yaml gives auto"):
        check_frozen(file, made)


@pytest.mark.parametrize("text", [None, "", "{", "[]", "{}", '{"zero_optimization": 3}', '{"zero_optimization": {}}'])
def test_an_incomplete_file_is_refused(file: Path, config: RunConfig, text: Any) -> None:
    file.unlink()
    if text is not None:
        file.write_text(text)
    for read in (lambda: check_frozen(file, config), lambda: read_settings(file, _plan(config, 2))):
        with pytest.raises(ConfigError, match="deepspeed.json"):
            read()
