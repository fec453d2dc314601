"""A run that continues an adapter has its settings, and refuses others."""

from pathlib import Path
from typing import List

import pytest

from ftdist.base.errors import ConfigError
from tests.unit.compose_tools import composed
from tests.unit.run.test_adapters import save_adapter


def test_the_settings_of_the_adapter_are_taken_over(tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "adapter", target_modules=["q_proj"], use_dora=True)
    words = ["experiment=smoke", "method=lora", f"method.init_from={adapter}", "method.lora_dropout=0.3"]
    method = composed(*words).method
    assert (method.r, method.lora_alpha, method.use_dora, method.use_rslora) == (8, 16.0, True, True)
    assert method.target_modules == ["q_proj"] and method.lora_dropout == 0.3
    assert composed(*words, "method.r=8", "method.target_modules=[q_proj]").method == method


@pytest.mark.parametrize(
    ("more", "found"),
    [
        (["method.r=16"], "method.r=16 is set on the command line, but method.init_from="),
        (["method.target_modules=[all-linear]"], "method.target_modules=[all-linear] is set on the command line"),
        (["method=full"], "method.init_from is set, but method=full does not read it"),
    ],
)
def test_settings_that_contradict_the_adapter_are_refused(more: List[str], found: str, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "adapter")
    with pytest.raises(ConfigError) as caught:
        composed("experiment=smoke", "method=lora", f"method.init_from={adapter}", *more)
    assert found in caught.value.found


def test_an_adapter_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="method.init_from=.*nothing does not exist"):
        composed("experiment=smoke", "method=lora", f"method.init_from={tmp_path / 'nothing'}")
