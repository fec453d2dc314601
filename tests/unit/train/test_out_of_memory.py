"""The message when memory runs out: what fills the memory, and the change that frees the most."""

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ftdist.config.method import MethodKind
from ftdist.config.optim import OptimizerKind
from ftdist.config.schema import Offload, Precision, Recompute, RunConfig
from ftdist.model.attention_plan import PLAIN
from ftdist.parallel.ranks import Ranks
from ftdist.plan.layout import Layout
from ftdist.plan.memory import States
from ftdist.run.model_facts import ModelFacts, write_facts
from ftdist.train.describe import eager_bytes
from ftdist.train.out_of_memory import GIB, account_for, best_change, explain_out_of_memory

BILLION = 10**9


def config(stage: int, micro: int = 1, recompute: bool = True, offload: Offload = Offload.none) -> RunConfig:
    made = RunConfig()
    made.zero.stage, made.zero.offload_optimizer = stage, offload
    made.batch.micro_batch_size = micro
    made.train.gradient_checkpointing = Recompute.full if recompute else Recompute.none
    made.train.precision = Precision.bf16
    return made


def test_activations_are_the_rest_of_the_measured_peak() -> None:
    """bf16, ZeRO-2, 8 ranks: 2 + 2/8 + 12/8 = 3.75 bytes for each parameter."""
    account = account_for(config(2), BILLION, Layout.of_world(8), 20 * GIB, cuda=True)
    assert account.states == States(parameters=2e9, gradients=0.25e9, optimizer_states=1.5e9)
    assert account.activations == pytest.approx(20 * GIB - 3.75e9)


def test_offloaded_states_count_on_cpu_and_not_on_a_gpu() -> None:
    made, layout = config(2, offload=Offload.cpu), Layout.of_world(8)
    assert account_for(made, BILLION, layout, 0.0, cuda=True).states == States(parameters=2e9)
    assert account_for(made, BILLION, layout, 0.0, cuda=False).states.optimizer_states == 1.5e9


@pytest.mark.parametrize(
    ("made", "ranks", "peak", "cuda", "change"),
    [
        (config(0), 8, 17 * GIB, True, "zero.stage=3"),
        (config(0), 1, 17 * GIB, True, "zero.stage=1 zero.offload_optimizer=cpu"),
        (config(3), 2, 9 * GIB, True, "zero.offload_optimizer=cpu"),
        (config(3, offload=Offload.cpu), 2, 1.1 * GIB, True, "zero.offload_param=cpu"),
        (config(3, recompute=False), 8, 60 * GIB, True, "train.gradient_checkpointing=full"),
        (config(3, micro=8), 8, 60 * GIB, True, "batch.micro_batch_size=4"),
        (config(3, micro=1), 8, 60 * GIB, True, "data.max_seq_len=1024"),
        (config(3), 1, 1 * GIB, False, "use more ranks, more memory for each rank, or a smaller model"),
    ],
)
def test_the_proposed_change_frees_the_most(made: RunConfig, ranks: int, peak: float, cuda: bool, change: str) -> None:
    assert best_change(made, BILLION, Layout.of_world(ranks), peak, cuda)[0] == change


def test_layers_that_are_recomputed_already_free_nothing_more() -> None:
    made = config(3)
    made.train.recompute_every = 2
    change, freed = best_change(made, BILLION, Layout.of_world(8), 60 * GIB, True)
    none = best_change(config(3, recompute=False), BILLION, Layout.of_world(8), 60 * GIB, True)
    assert change == "train.gradient_checkpointing=full train.recompute_every=1"
    assert freed == pytest.approx(none[1] / 2)


def test_an_optimizer_that_needs_whole_matrices_is_not_told_to_cut_them() -> None:
    made = config(0)
    assert best_change(made, BILLION, Layout.of_world(8), 17 * GIB, True)[0] == "zero.stage=3"
    made.optim.optimizer = OptimizerKind.muon
    assert best_change(made, BILLION, Layout.of_world(8), 17 * GIB, True)[0] == "data.max_seq_len=1024"


def test_the_scores_of_eager_attention_are_named_and_shrink_with_the_square_of_the_row() -> None:
    """2,048 tokens, 32 heads of one recomputed layer, 6 bytes: 0.75 GiB. Half of the row keeps a quarter of them."""
    text = SimpleNamespace(num_attention_heads=32, num_hidden_layers=28)
    arch = SimpleNamespace(get_text_config=lambda: text)
    scores = partial(eager_bytes, arch=arch, plan=PLAIN)
    made, layout = config(3, offload=Offload.cpu), Layout.of_world(8)
    held = account_for(made, BILLION, layout, 0.0, cuda=True).states.total
    account = account_for(made, BILLION, layout, held + 2 * GIB, True, scores)
    assert "0.8 GiB for the scores of eager attention, 1.2 GiB for activations and the rest" in str(account)
    change, freed = best_change(made, BILLION, layout, held + 2 * GIB, True, scores)
    assert change == "data.max_seq_len=1024"
    assert freed == pytest.approx((1.25 / 2 + 0.75 * 3 / 4) * GIB)
    assert scores(config(3, recompute=False)) == 28 * scores(made)


def test_what_communication_needs_is_a_part_of_the_rest() -> None:
    layout = Layout.of_world(8)
    held = account_for(config(2), BILLION, layout, 0.0, cuda=True).states.total
    account = account_for(config(2), BILLION, layout, held + 2 * GIB, True).with_exchange(GIB // 2)
    assert str(account).endswith("0.5 GiB for communication, 1.5 GiB for activations and the rest")
    assert account.with_exchange(3 * GIB).exchange == pytest.approx(2 * GIB)  # no more than the peak that was measured


def test_an_error_while_loading_names_the_memory_that_the_model_needs(tmp_path: Path) -> None:
    made = config(2)
    made.model.config, made.cache_dir = {"model_type": "llama"}, str(tmp_path)
    ranks = Ranks(rank=0, local_rank=0, world_size=4, restart=0, device=torch.device("cpu"))
    unknown = str(explain_out_of_memory(MemoryError("no room"), made, ranks, None))
    assert "memory ran out while the model was loaded: no room\n" in unknown and "zero.stage=3" in unknown
    write_facts(made, ModelFacts("llama", BILLION, None, False, True))
    known = str(explain_out_of_memory(MemoryError("no room"), made, ranks, None))
    assert (
        "no room. A rank needs about 1.9 GiB for parameters, 0.5 GiB for gradients, 2.8 GiB for optimizer states\n"
        in known
    )
    assert "zero.stage=3 (frees about 1.4 GiB)" in known
    made.method.kind = MethodKind.qlora
    for stage, size in ((2, "1.9"), (3, "0.5")):
        made.zero.stage = stage
        write_facts(made, ModelFacts("llama", BILLION, None, False, True, BILLION // 100, 0, BILLION // 2))
        quantized = str(explain_out_of_memory(MemoryError("no room"), made, ranks, None))
        assert f"before its matrices get 4 bits, a rank holds {size} GiB of weights\n" in quantized
