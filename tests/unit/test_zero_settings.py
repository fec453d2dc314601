from pathlib import Path

import pytest

from ftdist.batching import plan_batch
from ftdist.config import RunConfig
from ftdist.errors import ConfigError
from ftdist.zero.settings import deepspeed_settings
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
    ],
)
def test_a_key_with_another_owner_is_refused(tmp_path: Path, override: str, names: list) -> None:
    with pytest.raises(ConfigError) as error:
        _settings(tmp_path, override)
    assert all(name in str(error.value) for name in names), str(error.value)
