"""All checks of numbers of ``ftdist verify``, on the stand-ins of widely used configs, on two ranks with ZeRO-3.

``pytest --slow tests/ranks/test_verify_configs.py -k NAME`` runs one config.
"""

from pathlib import Path
from typing import Any, List

import pytest

from ftdist.config.data import SourceConfig
from tests.helpers.ranks import run_ranks
from tests.helpers.tiny import NONE_WHOLE, freeze_tiny, tiny_config
from tests.helpers.training import start
from tests.invariance import write_data
from tests.models.configs import CONFIGS, MULTIMODAL

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
SETTINGS = ("model.path=null", "train.max_steps=2", "train.checkpoint_every=1", "train.export=false", "zero.stage=3",
            NONE_WHOLE, "train.precision=bf16", "train.num_samples=0", "optim.warmup_steps=2", "optim.weight_decay=0.1",
            "batch.global_batch_size=4", "data.max_seq_len=64")  # fmt: skip
ALL = {**CONFIGS, **MULTIMODAL}
WITH_ADAPTERS = "gemma-3-4b-it"
"""The config with which adapters are checked too. Its base draws vectors."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the prepared data. A row has several documents of 5 to 42 tokens."""
    path = tmp_path_factory.mktemp("configs")
    write_data(path)
    freeze_tiny(_config(path, next(iter(ALL))), path / "prepared", 2)
    return path


def _config(folder: Path, name: str, *more: str) -> Any:
    from transformers import AutoConfig

    from ftdist.model.standin import whole_standin_config

    config = tiny_config(folder, *SETTINGS, *more)
    config.data.sources = {"mine": SourceConfig(path=str(folder / "train.jsonl"))}
    config.model.config = whole_standin_config(AutoConfig.for_model(**ALL[name]), 259)
    return config


def _checks(config: Any, folder: Path) -> List[Any]:
    from ftdist.verify.number_checks import check_numbers

    ranks, checks = start(config), []
    check_numbers(config, folder, ranks, False, checks.append if ranks.first else lambda check: None)
    return checks


def _all_pass(config: Any, folder: Path, count: int) -> None:
    checks: List[Any] = run_ranks(_checks, 2, config, folder, timeout_s=480)[0]
    assert not [check for check in checks if check.outcome != "passed"]
    assert len(checks) == count


@pytest.mark.parametrize("name", ALL)
def test_every_check_passes(name: str, folder: Path, tmp_path: Path) -> None:
    _all_pass(_config(folder, name), tmp_path, 8)


def test_every_check_passes_with_adapters(folder: Path, tmp_path: Path) -> None:
    _all_pass(_config(folder, WITH_ADAPTERS, "method.kind=lora"), tmp_path, 9)
