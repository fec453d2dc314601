"""The space that checkpoints take."""

import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from ftdist.base.errors import ConfigError
from ftdist.config.optim import OptimizerSpec, optimizer_of
from ftdist.config.schema import RunConfig
from ftdist.plan import disk
from ftdist.plan.disk import checkpoint_bytes, checkpoints_at_once, checkpoints_to_come, require_space, size_text
from ftdist.run.rundir import MANIFEST, PINNED, RunDir

ADAMW = OptimizerSpec(("exp_avg", "exp_avg_sq"))


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_bytes_of_a_checkpoint_follow_from_the_optimizer() -> None:
    """SmolLM2-135M: an fp32 master and two fp32 moments, 12 bytes for each of 134,515,008 parameters."""
    assert optimizer_of(RunConfig().optim).states == ADAMW.states and ADAMW.bytes_per_parameter == 8
    assert checkpoint_bytes(134_515_008, ADAMW) == 1_614_180_096
    assert checkpoint_bytes(1000, OptimizerSpec(("momentum_buffer",))) == 8000


def test_checkpoints_at_once() -> None:
    config = RunConfig()
    assert checkpoints_at_once(config, 1000) == 1  # only after the last step
    config.train.checkpoint_every = 5
    assert checkpoints_at_once(config, None) == 3
    config.train.keep_checkpoints = 4
    assert checkpoints_at_once(config, None) == 5
    assert [checkpoints_at_once(config, steps) for steps in (1, 5, 6, 1000)] == [1, 1, 2, 5]
    config.data.heldout_share = 0.1  # the best one is kept besides
    assert checkpoints_at_once(config, 1000) == 6


def test_pinned_checkpoints_make_no_room(tmp_path: Path) -> None:
    config, run = RunConfig(), RunDir(tmp_path)
    config.train.checkpoint_every = 5
    for step in (5, 10, 15):
        run.checkpoint(step).mkdir(parents=True)
        (run.checkpoint(step) / MANIFEST).touch()
    assert checkpoints_at_once(config, 1000) == 3 and checkpoints_to_come(config, run, 1000) == 1
    for step in (5, 10):
        (run.checkpoint(step) / PINNED).touch()
    assert checkpoints_to_come(config, run, 1000) == 2


def test_a_disk_that_is_one_byte_too_small_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1, 1, 24_000))
    require_space(tmp_path, 1000, ADAMW, count=2)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1, 1, 23_999))
    with pytest.raises(ConfigError, match="2 at a time"):
        require_space(tmp_path, 1000, ADAMW, count=2)


@pytest.mark.parametrize(("limit", "expected"), [("max", 500), ("300", 200), ("10000", 500), ("no number", 500)])
def test_free_memory_is_the_smaller_of_machine_and_control_group(
    limit: str, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Memory(NamedTuple):
        available: int = 500

    monkeypatch.setattr(disk, "CGROUP", tmp_path)
    monkeypatch.setattr(disk.psutil, "virtual_memory", Memory)
    assert disk.free_memory() == 500  # no control group
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.current").write_text("100\n")
    assert disk.free_memory() == expected


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0.0 MiB"), (1, "0.1 MiB"), (2**20, "1.0 MiB"), (2**30 - 1, "1,024.0 MiB"),
                       (2**30, "1.0 GiB"), (2**30 + 1, "1.1 GiB"), (5000 * 2**30, "5,000.0 GiB")]
)  # fmt: skip
def test_sizes_are_rounded_up(size: int, text: str) -> None:
    assert size_text(size) == text
