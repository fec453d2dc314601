from pathlib import Path
from typing import Any

import pytest

from ftdist.base.errors import ConfigError
from ftdist.config.schema import RunConfig
from ftdist.plan.batch import plan_batch
from ftdist.plan.deepspeed import deepspeed_settings
from ftdist.plan.deepspeed_keys import KNOWN_KEYS
from tests.tiny import tiny_config


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
    assert settings["bf16"] == {"enabled": True}
    assert settings["gradient_clipping"] == 0.7
    assert settings["train_micro_batch_size_per_gpu"] == 2
    assert settings["gradient_accumulation_steps"] == 2
    assert "train_batch_size" not in settings  # what zero.Init would see


def test_further_keys_are_merged(tmp_path: Path) -> None:
    settings = _settings(
        tmp_path, "zero.deepspeed.zero_optimization.reduce_bucket_size=1000", "zero.deepspeed.comms_logger.enabled=true"
    )
    assert settings["zero_optimization"]["reduce_bucket_size"] == 1000
    assert settings["zero_optimization"]["stage"] == 2
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
    """Its schemas tell those of ZeRO; those of the top level are seen when it looks for them."""
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
