"""How a batch is cut and a model is sharded changes nothing: every combination equals the plain reference.

Two suites. A long one follows one family for 20 steps through every stage, number of ranks, accumulation, packing and
recomputation. A wide one covers nine families and every pair of choices on nine axes (tests/invariance.py).
"""

import itertools
from pathlib import Path
from typing import Any, Callable, Dict, List

import pytest

from ftdist.verify.compare import ALLOWED, Deviation
from tests import invariance
from tests.invariance import AXES, Case, covering, each_training, every_case
from tests.spawn import run_ranks
from tests.tiny import freeze_tiny, save_tiny_model, tiny_config

pytestmark = pytest.mark.timeout(900)
STEPS, ROWS = 20, 16
TOLERANCE = 1e-5  # relative, fp32, after 20 steps
SETTINGS = (
    f"train.max_steps={STEPS}", f"batch.global_batch_size={ROWS}", "optim.lr=3e-4", "optim.weight_decay=0.1",
    "optim.warmup_steps=4", "optim.min_lr_ratio=0.1", "optim.max_grad_norm=0.5", "train.num_samples=0",
    "data.heldout_share=0", "train.export=false", "data.max_heldout_documents=null",
)  # fmt: skip
Record = Callable[[str, object], None]


def _reference(config: Any, folder: Path) -> List[Dict[str, float]]:
    import torch
    from transformers import AutoModelForCausalLM

    from ftdist.verify.reference import Reference, read_rows, row_order

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(config.model.path, dtype=torch.float32)
    rows, reference = read_rows(folder), Reference(model, config.optim, STEPS)
    order = row_order(config.seed, len(rows), STEPS * ROWS)
    steps = [[d for row in order[step * ROWS : (step + 1) * ROWS] for d in rows[row]] for step in range(STEPS)]
    return [reference.step(step, documents) for step, documents in enumerate(steps)]


def _sharded_runs(configs: List[Any], folder: Path) -> List[List[Dict[str, float]]]:
    from ftdist.train.loop import train_step

    histories = []
    for training in each_training(configs, folder):
        results = [train_step(training, step) for step in range(STEPS)]
        histories.append([{"loss": r.loss, "grad_norm": r.grad_norm, "lr": r.lr} for r in results])
    return histories


def _worst(history: List[Dict[str, float]], expected: List[Dict[str, float]]) -> float:
    pairs = [(a[k], b[k]) for a, b in zip(history, expected, strict=True) for k in b]
    return max(abs(a - b) / abs(b) for a, b in pairs)


@pytest.fixture(scope="module", params=[True, False], ids=["packed", "padded"])
def reference(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from ftdist.data.cache import data_folder

    folder = tmp_path_factory.mktemp("reference")
    save_tiny_model(folder / "model")
    packing = f"data.packing={str(request.param).lower()}"
    config = tiny_config(folder, *SETTINGS, packing)
    freeze_tiny(config, folder / "run", 1)
    (history,) = run_ranks(_reference, 1, config, data_folder(config) / "train")
    return folder, packing, history


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_twenty_steps_are_the_same(reference: Any, world_size: int, record_property: Record) -> None:
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
    record_property("combinations", len(cases))


def test_the_loss_falls(reference: Any) -> None:
    _, _, history = reference
    assert history[-1]["loss"] < history[0]["loss"] - 0.1


def test_the_covering_covers_every_pair() -> None:
    chosen = covering()
    assert {pair for case in every_case() for pair in invariance.pairs(case)} == {
        pair for case in chosen for pair in invariance.pairs(case)
    }
    assert len(chosen) < 60
    assert len(set(chosen)) == len(chosen)


@pytest.fixture(scope="module")
def deviations(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Dict[Case, Deviation]:
    """Of the cases that were selected, all run at once."""
    here = [item for item in request.session.items if getattr(item, "originalname", "") == "test_every_pair_of_choices"]
    cases = [item.callspec.params["case"] for item in here]  # type: ignore[attr-defined]
    return invariance.run_cases(cases, tmp_path_factory.mktemp("covering"))


@pytest.mark.parametrize("case", covering(), ids=invariance.name)
def test_every_pair_of_choices(case: Case, deviations: Dict[Case, Deviation], record_property: Record) -> None:
    assert not deviations[case].beyond(ALLOWED[case.precision])
    record_property("combinations", 1)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("world_size", AXES["world_size"])
@pytest.mark.parametrize("family", AXES["family"])
def test_the_whole_product(family: str, world_size: int, tmp_path: Path, record_property: Record) -> None:
    cases = [case for case in every_case() if (case.family, case.world_size) == (family, world_size)]
    found = invariance.run_cases(cases, tmp_path)
    wrong = {invariance.name(case): beyond for case in cases if (beyond := found[case].beyond(ALLOWED[case.precision]))}
    assert not wrong
    record_property("combinations", len(cases))
