"""All checks of numbers of ``ftdist verify``, on the stand-ins of widely used configs, on two ranks with ZeRO-3."""

from pathlib import Path
from typing import Any, Dict, List

import pytest

from tests.helpers.ranks import run_ranks
from tests.helpers.tiny import freeze_tiny, tiny_config
from tests.helpers.training import start
from tests.models.configs import CONFIGS, MULTIMODAL

SETTINGS = ("model.path=null", "train.max_steps=2", "train.checkpoint_every=1", "train.export=false", "zero.stage=3",
            "train.precision=bf16", "train.num_samples=0", "optim.warmup_steps=2", "optim.weight_decay=0.1",
            "batch.global_batch_size=4")  # fmt: skip

TOGETHER = 4
"""Number of configs that a pair of processes checks. Threads of process groups live as long as their process."""


def _failures(configs: Dict[str, Any], folder: Path) -> Dict[str, List[Any]]:
    """Return the checks that did not pass, by model."""
    from ftdist.verify.number_checks import check_numbers

    found: Dict[str, List[Any]] = {}
    for number, (name, config) in enumerate(configs.items()):
        ranks, checks = start(config), []
        check_numbers(config, folder / str(number), ranks, False, checks.append if ranks.first else lambda check: None)
        found[name] = [check for check in checks if check.outcome != "passed"]
    return found


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_every_check_passes(tmp_path: Path) -> None:
    from transformers import AutoConfig

    from ftdist.model.standin import whole_standin_config

    configs = {}
    for name, fields in {**CONFIGS, **MULTIMODAL}.items():
        configs[name] = tiny_config(tmp_path, *SETTINGS)
        configs[name].model.config = whole_standin_config(AutoConfig.for_model(**fields), 259)
    configs["adapters"] = tiny_config(tmp_path, *SETTINGS, "method.kind=lora")  # the base draws vectors
    configs["adapters"].model.config = configs["gemma-3-4b-it"].model.config
    freeze_tiny(next(iter(configs.values())), tmp_path / "prepared", 2)
    found: Dict[str, List[Any]] = {}
    names = list(configs)
    for first in range(0, len(names), TOGETHER):
        some = {name: configs[name] for name in names[first : first + TOGETHER]}
        found |= run_ranks(_failures, 2, some, tmp_path / str(first), timeout_s=1800)[0]
    assert not {name: checks for name, checks in found.items() if checks}
