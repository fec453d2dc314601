"""The settings of a sweep."""

from typing import Any, Optional

import pytest

from ftdist.base.errors import ConfigError
from ftdist.config.sweep import SweepConfig, check_sweep


@pytest.mark.parametrize(
    ("settings", "max_steps", "fix"),
    [
        ({"rungs": [20, 60], "keep": 0.25}, 61, None),
        ({"rungs": [20, 60]}, None, None),  # the run is given in epochs
        ({"rungs": [20, 60]}, 60, "sweep.rungs=[20]"),
        ({"rungs": [60, 20, 20]}, 100, "sweep.rungs=[20,60]"),
        ({"rungs": [0, 20]}, 100, "sweep.rungs=[20]"),
        ({"keep": 0.0}, 100, "sweep.keep=0.5"),
        ({"keep": 1.0}, 100, "sweep.keep=0.5"),
    ],
)
def test_rungs_are_steps_within_the_run(settings: Any, max_steps: Optional[int], fix: Optional[str]) -> None:
    if fix is None:
        check_sweep(SweepConfig(**settings), max_steps)
    else:
        with pytest.raises(ConfigError) as error:
            check_sweep(SweepConfig(**settings), max_steps)
        assert error.value.fix == fix
