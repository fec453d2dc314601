"""The space that checkpoints take, on disk and in host memory."""

import math
import shutil
from pathlib import Path
from typing import Optional

import psutil

from ftdist.base.errors import ConfigError
from ftdist.config.optim import FP32_BYTES, OptimizerSpec
from ftdist.config.schema import RunConfig
from ftdist.run.rundir import PINNED, RunDir

CGROUP = Path("/sys/fs/cgroup")


def checkpoint_bytes(trained: int, optimizer: OptimizerSpec) -> int:
    """Return the size of the tensors of one checkpoint, over all ranks.

    It holds the fp32 master weight and the optimizer states of every trained parameter. 16-bit weights are not stored,
    because they are the rounded master weights.
    """
    return math.ceil(trained * (FP32_BYTES + optimizer.bytes_per_parameter))


def checkpoints_at_once(config: RunConfig, max_steps: Optional[int]) -> int:
    """Return the maximum number of checkpoints that are on the disk at the same time.

    These are the checkpoints that are kept, the best one, and the one that is being written.

    Args:
        max_steps: steps of the run; None if they are not known yet.
    """
    every, kept = config.train.checkpoint_every, config.train.keep_checkpoints
    if every is None:
        return 1
    has_best = bool(config.data.heldout) or config.data.heldout_share > 0
    most = kept + has_best + 1
    return min(-(-max_steps // every), most) if max_steps else most


def checkpoints_to_come(config: RunConfig, run: RunDir, max_steps: int) -> int:
    """Return the number of checkpoints that still need free space. Existing ones will be replaced, unless they are
    pinned."""
    replaced = [path for path in run.published_checkpoints() if not (path / PINNED).exists()]
    return max(1, checkpoints_at_once(config, max_steps) - len(replaced))


def require_space(folder: Path, trained: int, optimizer: OptimizerSpec, count: int) -> None:
    """Check that checkpoints fit on the disk of ``folder``.

    Args:
        trained: trained parameters of the model.
        count: checkpoints that are still to be written and are there at the same time.

    Raises:
        ConfigError: they do not fit. The message has the sizes that are needed and free, and the number of checkpoints.
    """
    one, free = checkpoint_bytes(trained, optimizer), shutil.disk_usage(folder).free
    if one * count > free:
        several = f"{count} at a time (those kept, the best, the one being written)" if count > 1 else "one"
        fewer = "" if count == 1 else ", or train.keep_checkpoints=1"
        raise ConfigError(
            f"{folder} has {size_text(free)} free; checkpoints of {trained / 1e6:,.0f}M parameters take "
            f"{size_text(one)} each, {several}: {size_text(one * count)}",
            "room for every checkpoint that is kept",
            f"free some space, or set runs_dir=FOLDER on a larger disk{fewer}",
        )  # fmt: skip


def free_memory() -> int:
    """Return the bytes of host memory that this process can still use, as limited by the machine and its control
    group."""
    free = psutil.virtual_memory().available
    try:
        limit, used = ((CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
        return free if limit == "max" else min(free, int(limit) - int(used))
    except (OSError, ValueError):
        return free


def size_text(size: int) -> str:
    """Return a number of bytes as text in MiB or GiB, rounded up to one decimal."""
    unit, name = (2**30, "GiB") if size >= 2**30 else (2**20, "MiB")
    return f"{-(-size * 10 // unit) / 10:,.1f} {name}"
