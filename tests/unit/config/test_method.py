"""The settings of a method: values out of range, and settings that it does not read."""

from typing import Any

import pytest

from ftdist.base.errors import ConfigError
from ftdist.config.method import MethodConfig, MethodKind, check_method
from ftdist.config.resumable import config_hash
from ftdist.config.schema import RunConfig

LORA, PARTIAL, FULL = MethodKind.lora, MethodKind.partial, MethodKind.full


@pytest.mark.parametrize(
    ("settings", "found", "fix"),
    [
        ({"kind": LORA, "r": 0}, "method.r=0", "method.r=16"),
        ({"kind": LORA, "lora_alpha": 0.0}, "method.lora_alpha=0", "method.lora_alpha=32"),
        ({"kind": LORA, "lora_dropout": 1.0}, "method.lora_dropout=1", "method.lora_dropout="),
        ({"kind": LORA, "target_modules": []}, "method.target_modules is empty", "[all-linear]"),
        ({"kind": LORA, "layers_to_transform": []}, "method.layers_to_transform is empty", "null"),
        ({"kind": LORA, "last_layers": 1}, "method=lora does not read it", "method=partial"),
        ({"kind": FULL, "r": 8}, "method=full does not read it", "method=lora"),
        ({"kind": PARTIAL, "use_dora": True}, "method=partial does not read it", "method=lora"),
        ({"kind": PARTIAL}, "nothing would be trained", "method.last_layers=2"),
        ({"kind": PARTIAL, "last_layers": -1}, "method.last_layers=-1", "method.last_layers=2"),
    ],
)
def test_invalid_settings_of_a_method_are_refused(settings: Any, found: str, fix: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_method(MethodConfig(**settings), 2)
    assert found in caught.value.found and fix in caught.value.fix


def test_dora_in_4_bits_is_refused_where_its_matrices_are_sharded() -> None:
    method = MethodConfig(kind=MethodKind.qlora, use_dora=True)
    check_method(method, 2)
    check_method(MethodConfig(kind=LORA, use_dora=True), 3)
    with pytest.raises(ConfigError, match="by matrices that are not sharded"):
        check_method(method, 3)


def test_the_settings_of_a_method_are_part_of_the_hash_and_those_of_others_are_not() -> None:
    full = config_hash(RunConfig())
    lora = RunConfig(method=MethodConfig(kind=LORA))
    hashes = {full, config_hash(lora)}
    for name, value in (("r", 8), ("lora_alpha", 16.0), ("target_modules", ["q_proj"]), ("use_dora", True)):
        changed = RunConfig(method=MethodConfig(kind=LORA, **{name: value}))
        hashes.add(config_hash(changed))
    assert len(hashes) == 6
