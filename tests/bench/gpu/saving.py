"""How long training waits for a checkpoint."""

import shutil
import time
from pathlib import Path
from typing import Any, Dict

import torch

from ftdist.checkpoint.saver import Saver
from ftdist.train.loop import train_step
from tests.bench.gpu.cells import Cell, Subject
from tests.bench.gpu.clock import settle
from tests.bench.gpu.subject import assemble, config_of, start, trained
from tests.helpers.alone import Skip

SAVES, LONG_S = 2, 35.0
"""Number of checkpoints; only one if it takes longer than this."""
BYTES = 12
"""Of a checkpoint, for each trained parameter."""
GIB = 2**30


def measure_saving(cell: Cell, subject: Subject, own: Path, device: torch.device) -> Dict[str, Any]:
    """Save checkpoints. They are written beside training if there is enough host memory.

    Raises:
        Skip: The disk has no room for them.
    """
    config = config_of(cell, subject, own, device)
    config.train.keep_checkpoints = 1
    run = assemble(config, subject, own, start(config))
    size, free = BYTES * trained(run.engine.module), shutil.disk_usage(own).free
    if free < 1.1 * SAVES * size:
        raise Skip(f"{SAVES} checkpoints need {SAVES * size / GIB:.0f} GiB, the disk has {free / GIB:.0f} GiB")
    run.saver = Saver(run.engine, run.run, config, {}, print)
    _step(run, device)
    saves = []
    for _ in range(SAVES):
        alone, began = _step(run, device), time.perf_counter()
        run.saver.save({**run.state.as_dict(), "vocab_size": run.vocab_size, "run_id": "bench", "due": True})
        stall = time.perf_counter() - began
        beside = _step(run, device)
        run.saver.finish()
        saves.append(
            {"step_s": alone, "stall_s": stall, "beside_s": beside, "published_s": time.perf_counter() - began}
        )
    return {"bytes": size, "background": run.saver.background, "saves": saves}


def _step(run: Any, device: torch.device) -> float:
    started = time.perf_counter()
    train_step(run, run.state.step)
    settle(device)
    run.state.step += 1
    return time.perf_counter() - started
