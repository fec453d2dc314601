"""The room that checkpoints take, on disk and in memory. [light]"""

import shutil
from pathlib import Path
from typing import Optional

import psutil

from ftdist.base.errors import ConfigError
from ftdist.config.schema import RunConfig
from ftdist.run.rundir import PINNED, RunDir

BYTES_PER_PARAMETER = 12  # fp32 master and two moments; 16-bit weights follow from the masters
CGROUP = Path("/sys/fs/cgroup")


def checkpoint_bytes(parameters: int) -> int:
    """Size of one checkpoint, over all ranks."""
    return parameters * BYTES_PER_PARAMETER


def checkpoints_at_once(config: RunConfig, max_steps: Optional[int]) -> int:
    """Most checkpoints that lie on the disk at a time: those that are kept, the best, and the one being written.

    Args:
        max_steps: steps of the run; None where that is not known yet.
    """
    every, kept = config.train.checkpoint_every, config.train.keep_checkpoints
    if every is None:
        return 1
    has_best = bool(config.data.heldout) or config.data.heldout_share > 0
    saves = -(-max_steps // every) if max_steps else kept + has_best + 1
    return min(saves, kept + has_best + 1)


def checkpoints_to_come(config: RunConfig, run: RunDir, max_steps: int) -> int:
    """Of those, how many have no place yet: the ones that lie there make room, unless they are pinned."""
    make_room = [path for path in run.published_checkpoints() if not (path / PINNED).exists()]
    return max(1, checkpoints_at_once(config, max_steps) - len(make_room))


def require_space(folder: Path, parameters: int, count: int) -> None:
    """Refuse a run whose checkpoints would not fit.

    Args:
        count: checkpoints that are still to come at a time.

    Raises:
        ConfigError: names the bytes needed and free, and how many checkpoints that is.
    """
    one, free = checkpoint_bytes(parameters), shutil.disk_usage(folder).free
    if one * count > free:
        several = f"{count} at a time (those kept, the best, the one being written)" if count > 1 else "one"
        fewer = "" if count == 1 else ", or train.keep_checkpoints=1"
        raise ConfigError(
            f"{folder} has {size_text(free)} free; checkpoints of {parameters / 1e6:,.0f}M parameters take "
            f"{size_text(one)} each, {several}: {size_text(one * count)}",
            "room for every checkpoint that is kept", f"make room, or runs_dir=FOLDER on a larger disk{fewer}",
        )  # fmt: skip


def free_memory() -> int:
    """Bytes of host memory that can be had: of the machine, and of the control group that this process is in."""
    free = psutil.virtual_memory().available
    try:
        limit, used = ((CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
        return free if limit == "max" else min(free, int(limit) - int(used))
    except (OSError, ValueError):
        return free


def size_text(size: int) -> str:
    """Bytes for a reader, rounded up."""
    unit, name = (2**30, "GiB") if size >= 2**30 else (2**20, "MiB")
    return f"{-(-size * 10 // unit) / 10:,.1f} {name}"
