"""The memory of a rank does not grow with the number of steps or of row lengths."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, List

from ftdist.config.frozen import load_config
from ftdist.config.launch import Device
from ftdist.config.schema import RunConfig
from ftdist.launch.attempt.command import ranks_env
from ftdist.run.rundir import RunDir
from tests.helpers.heap import bytes_in_use
from tests.helpers.ranks import run_ranks
from tests.helpers.tiny import freeze_tiny, save_tiny_model, tiny_config
from tests.helpers.training import assemble, start

MIB = 2**20
EARLY, MIDDLE, LATE = 20, 40, 60
"""Steps at which memory is measured. Everything that a run does at intervals has happened before the first."""


def _in_use_by_step(run_dir: Path) -> List[int]:
    """Run with evaluations, samples and checkpoints. Returns the bytes in use after three steps."""
    import gc

    from ftdist.train import loop

    found, train_step = [], loop.train_step
    config = load_config(RunDir(run_dir).config)
    training = assemble(config, run_dir, start(config))

    def watched_step(training: Any, index: int) -> Any:
        result = train_step(training, index)
        if index + 1 in (EARLY, MIDDLE, LATE):
            training.saver.join()
            gc.collect()
            found.append(bytes_in_use())
        return result

    loop.train_step = watched_step
    loop.train(training)
    return found


def test_memory_does_not_grow_with_steps(tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "model")
    config = tiny_config(tmp_path, f"train.max_steps={LATE}", "train.eval_every=9", "train.checkpoint_every=9",
                         "train.export=false", "optim.lr=1e-3")  # fmt: skip
    for early, middle, late in run_ranks(_in_use_by_step, 2, freeze_tiny(config, tmp_path / "run", 2).path):
        # A leak grows all the time. A single jump comes from threads, whose memory glibc counts in part.
        assert min(middle - early, late - middle) < MIB / 2


MANY_LENGTHS = """
import torch
from tests.helpers.heap import bytes_in_use

torch.set_num_threads(1)
linear = torch.nn.Linear(64, 128, bias=False, dtype=torch.bfloat16)
for rows in range(100, 500):
    if rows in (200, 499):
        print(bytes_in_use())
    linear(torch.randn(1, rows, 64, dtype=torch.bfloat16, requires_grad=True)).sum().backward()
"""


def test_memory_does_not_grow_with_row_lengths() -> None:
    """oneDNN would keep a kernel for each row length. It is used in bf16 on CPUs with AVX-512."""
    config = RunConfig()
    config.launch.device = Device.cpu
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", MANY_LENGTHS], env={**os.environ, **ranks_env(config), "PYTHONPATH": root},
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    early, late = map(int, done.stdout.split())
    assert late - early < 30 * MIB
