"""What fills memory, and the one change that frees the most."""

from pathlib import Path

import pytest
import torch

from ftdist.config.schema import Offload, Precision, RunConfig
from ftdist.parallel.ranks import Ranks
from ftdist.run.model_facts import ModelFacts, write_facts
from ftdist.train.out_of_memory import GIB, account_for, best_change, explained

BILLION = 10**9


def config(stage: int, micro: int = 1, recompute: bool = True, offload: Offload = Offload.none) -> RunConfig:
    made = RunConfig()
    made.zero.stage, made.zero.offload_optimizer = stage, offload
    made.batch.micro_batch_size, made.train.gradient_checkpointing = micro, recompute
    made.train.precision = Precision.bf16
    return made


@pytest.mark.parametrize(("stage", "states"), [(0, 16.0), (1, 5.5), (2, 3.75), (3, 2.0)])
def test_the_account_is_that_of_the_documentation(stage: int, states: float) -> None:
    """docs/step.md: bytes a parameter on 8 ranks, in bf16."""
    account = account_for(config(stage), BILLION, 8, 20 * GIB, cuda=True)
    held = account.parameters + account.gradients + account.optimizer_states
    assert held == pytest.approx(states * BILLION)
    assert account.activations == pytest.approx(20 * GIB - held)


@pytest.mark.parametrize(
    ("made", "ranks", "peak", "cuda", "change"),
    [
        (config(0), 8, 17 * GIB, True, "zero.stage=3"),
        (config(0), 1, 17 * GIB, True, "zero.stage=1 zero.offload_optimizer=cpu"),
        (config(3), 2, 9 * GIB, True, "zero.offload_optimizer=cpu"),
        (config(3, offload=Offload.cpu), 2, 1.1 * GIB, True, "zero.offload_param=cpu"),
        (config(3, recompute=False), 8, 60 * GIB, True, "train.gradient_checkpointing=true"),
        (config(3, micro=8), 8, 60 * GIB, True, "batch.micro_batch_size=4"),
        (config(3, micro=1), 8, 60 * GIB, True, "data.max_seq_len=1024"),
        (config(3), 1, 1 * GIB, False, "more memory, more ranks, or a smaller model"),
    ],
)
def test_the_change_that_frees_the_most(made: RunConfig, ranks: int, peak: float, cuda: bool, change: str) -> None:
    account = account_for(made, BILLION, ranks, peak, cuda)
    assert best_change(made, ranks, account, cuda)[0] == change


def test_a_model_that_does_not_fit_is_told_by_its_size(tmp_path: Path) -> None:
    made = config(2)
    made.model.config, made.cache_dir = {"model_type": "llama"}, str(tmp_path)
    ranks = Ranks(rank=0, local_rank=0, world_size=4, restart=0, device=torch.device("cpu"))
    unknown = str(explained(MemoryError("no room"), made, ranks, None))
    assert "while the model was loaded: no room" in unknown and "zero.stage=3" in unknown
    write_facts(made, ModelFacts("llama", BILLION, None, False, True))
    known = str(explained(MemoryError("no room"), made, ranks, None))
    assert "in GiB about 1.9 parameters, 0.5 gradients, 2.8 optimizer states a rank: no room" in known
    assert "zero.stage=3 (frees about 1.4 GiB)" in known
