"""How ``ftdist verify`` changes a config for this machine."""

from pathlib import Path

from ftdist.launch.runs.verify import _fit_ranks
from tests.helpers.tiny import tiny_config


def test_pages_are_left_out_where_no_gpu_is_used(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, "optim.paged=true")
    notes = _fit_ranks(config, 2)
    assert not config.optim.paged and "the optimizer is checked without optim.paged, because no GPU is used" in notes
