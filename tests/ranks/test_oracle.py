"""Loss and gradient norm of the first 20 steps equal the plain-PyTorch oracle, however the run is sharded."""

import itertools
from pathlib import Path
from typing import Any, Dict, List

import pytest

from tests.oracle import oracle_run, read_rows
from tests.spawn import run_ranks
from tests.tiny import freeze_tiny, save_tiny_model, tiny_config

STEPS, ROWS = 20, 16
TOLERANCE = 1e-5  # relative, fp32
SETTINGS = (
    f"train.max_steps={STEPS}", f"batch.global_batch_size={ROWS}", "optim.lr=3e-4", "optim.weight_decay=0.1",
    "optim.warmup_steps=4", "optim.min_lr_ratio=0.1", "optim.max_grad_norm=0.5", "train.num_samples=0",
    "data.heldout_share=0", "train.export=false", "data.max_heldout_documents=null",
)  # fmt: skip


def _oracle(config: Any, folder: Path, order: List[int]) -> List[Dict[str, float]]:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(config.model.path, dtype=torch.float32)
    return oracle_run(config, model, read_rows(folder), order)


def _sharded_runs(configs: List[Any], folder: Path) -> List[List[Dict[str, float]]]:
    """Every config in turn on these ranks: the real assembly and loop; the process group is set up once."""
    import torch.distributed as dist

    from ftdist.rundir import RunDir
    from ftdist.train import ranks as rank_setup
    from ftdist.train.loop import train_step
    from ftdist.train.main import assemble
    from ftdist.train.preempt import Preemption

    rank_setup.quiet_libraries()
    ranks = rank_setup.read_ranks(configs[0])
    rank_setup.start_process_group(configs[0], ranks)
    histories = []
    for number, config in enumerate(configs):
        run = RunDir(folder / f"run-{ranks.world_size}-{number}")
        if ranks.first:
            run.checkpoints.mkdir(parents=True)
            run.logs.mkdir()
        dist.barrier()
        training = assemble(config, run, ranks, Preemption(run, ranks.rank))
        results = [train_step(training, step) for step in range(STEPS)]
        histories.append([{"loss": r.loss, "grad_norm": r.grad_norm} for r in results])
        training.engine.destroy()
    return histories


def _worst(history: List[Dict[str, float]], expected: List[Dict[str, float]]) -> float:
    pairs = [(a[k], b[k]) for a, b in zip(history, expected, strict=True) for k in ("loss", "grad_norm")]
    return max(abs(a - b) / abs(b) for a, b in pairs)


@pytest.fixture(scope="module", params=[True, False], ids=["packed", "padded"])
def reference(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from ftdist.data.cache import data_folder
    from ftdist.data.loader import row_ids

    folder = tmp_path_factory.mktemp("oracle")
    save_tiny_model(folder / "model")
    packing = f"data.packing={str(request.param).lower()}"
    config = tiny_config(folder, *SETTINGS, packing)
    freeze_tiny(config, folder / "run", 1)
    rows = read_rows(data_folder(config) / "train")
    order = [int(i) for i in row_ids(config.seed, len(rows), 0, STEPS * ROWS)]
    (history,) = run_ranks(_oracle, 1, config, data_folder(config) / "train", order)
    return folder, packing, history


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_sharding_changes_nothing(reference: Any, world_size: int) -> None:
    folder, packing, expected = reference
    cases = list(itertools.product([0, 1, 2, 3], [1, 4], [True, False]))
    configs = [
        tiny_config(
            folder, *SETTINGS, packing, f"zero.stage={stage}", f"batch.micro_batch_size={ROWS // world_size // accum}",
            f"train.gradient_checkpointing={str(recompute).lower()}",
        )
        for stage, accum, recompute in cases
    ]  # fmt: skip
    everyone = run_ranks(_sharded_runs, world_size, configs, folder)
    for case, history in zip(cases, everyone[0], strict=True):
        worst = _worst(history, expected)
        assert worst <= TOLERANCE, f"stage, accumulation, gradient checkpointing {case}: off by {worst:.2g}"
    assert all(other == everyone[0] for other in everyone), "ranks report different numbers"


def test_the_loss_falls(reference: Any) -> None:
    _, _, history = reference
    assert history[-1]["loss"] < history[0]["loss"] - 0.1
