"""The settings of an optimizer: those that it does not read, and rates that are unusual for it."""

from typing import Any

import pytest

from ftdist.base.errors import ConfigError
from ftdist.config.method import METHOD_FACTS, MethodConfig, MethodKind
from ftdist.config.optim import OPTIMIZERS, OptimConfig, OptimizerKind, check_optimizer, rate_warning, values_of

FULL, LORA, PARTIAL = MethodKind.full, MethodKind.lora, MethodKind.partial
LION, SGD, MUON, ADAFACTOR = OptimizerKind.lion, OptimizerKind.sgd, OptimizerKind.muon, OptimizerKind.adafactor


@pytest.mark.parametrize(
    ("settings", "method", "found", "fix"),
    [
        ({"momentum": 0.9}, FULL, "optim.optimizer=adamw does not read it", "optim.momentum=null"),
        ({"optimizer": LION, "eps": 1e-6}, FULL, "optim.optimizer=lion does not read it", "optim.eps=null"),
        ({"optimizer": SGD, "beta1": 0.9}, FULL, "optim.optimizer=sgd does not read it", "optim.beta1=null"),
        ({"optimizer": SGD, "paged": True}, FULL, "optim.optimizer=sgd has no paged variant", "optim.paged=false"),
        ({"lora_plus_ratio": 16.0}, FULL, "method=full has no B matrices", "optim.lora_plus_ratio=null"),
    ],
)
def test_a_setting_that_is_not_read_is_refused(settings: Any, method: MethodKind, found: str, fix: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_optimizer(OptimConfig(**settings), MethodConfig(kind=method), 0)
    assert found in caught.value.found and fix in caught.value.fix


@pytest.mark.parametrize("kind", OptimizerKind)
def test_a_stage_at_which_the_optimizer_would_give_other_numbers_is_refused(kind: OptimizerKind) -> None:
    for stage in range(4):
        if kind in (ADAFACTOR, MUON) and stage:
            with pytest.raises(ConfigError, match=f"{kind.name} with zero.stage={stage}: .* matrix.*, and ZeRO.*flat"):
                check_optimizer(OptimConfig(optimizer=kind), MethodConfig(), stage)
        else:
            check_optimizer(OptimConfig(optimizer=kind), MethodConfig(), stage)


def test_what_is_not_set_has_the_usual_value_of_the_optimizer() -> None:
    assert values_of(OptimConfig()) == {"beta1": 0.9, "beta2": 0.95, "eps": 1e-8}
    assert values_of(OptimConfig(optimizer=LION, beta1=0.95)) == {"beta1": 0.95, "beta2": 0.99}
    assert values_of(OptimConfig(optimizer=SGD, momentum=0.0)) == {"momentum": 0.0}
    assert OPTIMIZERS.keys() == set(OptimizerKind) and METHOD_FACTS.keys() == set(MethodKind)
    for kind in OptimizerKind:
        check_optimizer(OptimConfig(optimizer=kind, lora_plus_ratio=16.0), MethodConfig(kind=LORA), 0)


@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        (LORA, {"lr": 1e-5}, "lr=1e-05 is low for method=lora; usual values are 3e-05 to 0.005"),
        (LORA, {"lr": 1e-4}, ""), (LORA, {"lr": 2e-3}, ""), (LORA, {"lr": 0.0}, ""),
        (LORA, {"lr": 0.1}, "is high for method=lora"), (FULL, {"lr": 1e-5}, ""), (PARTIAL, {"lr": 2e-5}, ""),
        (FULL, {"lr": 0.01}, "is high for method=full"),
        (LORA, {"lr": 1e-4, "lora_plus_ratio": 16.0}, ""),
        (LORA, {"lr": 1e-3, "lora_plus_ratio": 16.0}, "lr × optim.lora_plus_ratio = 0.016 is high for method=lora"),
        (LORA, {"lr": 1e-4, "lora_plus_ratio": 0.1}, "= 1e-05 is low for"),
        (LORA, {"lr": 2e-3, "optimizer": LION}, "for method=lora with optim.optimizer=lion; usual values are 3e-06"),
        (FULL, {"lr": 1e-6, "optimizer": LION}, ""),
        (FULL, {"lr": 1e-6, "optimizer": SGD}, "is low for method=full with optim.optimizer=sgd"),
        (FULL, {"lr": 0.1, "optimizer": SGD}, ""), (FULL, {"lr": 1e-3, "optimizer": ADAFACTOR}, ""),
        (FULL, {"lr": 0.3, "optimizer": ADAFACTOR}, "is high"), (FULL, {"lr": 1e-5, "optimizer": MUON}, ""),
    ],
)  # fmt: skip
def test_a_rate_that_is_unusual_is_a_warning(kind: MethodKind, settings: Any, words: str) -> None:
    warning = rate_warning(kind, OptimConfig(**settings))
    assert words in warning if words else not warning
