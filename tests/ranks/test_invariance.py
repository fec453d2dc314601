"""However a batch is split and a model is sharded, a run equals the plain reference.

There are three suites. The long one follows one model family for 12 steps: every combination of stage, accumulation and
recomputation at least once, and each of these choices with every number of ranks, packed and padded (``--slow``: the
whole product). The wide one covers nine families on ten axes. The last one covers LoRA, DoRA, rsLoRA, QLoRA and partial
training on six axes (see tests/invariance.py). In both, every choice on each axis runs with and without ZeRO-3
(``--slow``: every pair of choices).

With ``--slow``, each family also runs at every stage on every number of ranks in every precision, packed and padded.
Each method runs at every stage on every number of ranks, packed and padded.
"""

import itertools
from pathlib import Path
from typing import Any, Callable, Dict, List

import pytest

from ftdist.config.schema import Compile, Precision
from ftdist.verify.compare import ALLOWED, Deviation
from tests import invariance
from tests.helpers.ranks import run_ranks
from tests.helpers.tiny import freeze_tiny, save_tiny_model, tiny_config
from tests.helpers.training import each_training
from tests.invariance import (
    AXES,
    FIRST,
    METHOD_AXES,
    Axes,
    Case,
    covering,
    covering_methods,
    crossed,
    crossed_methods,
    every_case,
)

pytestmark = pytest.mark.timeout(900)
STEPS, ROWS = 12, 16
REFERENCE = "reference.pt"
SETTINGS = (
    f"train.max_steps={STEPS}", f"batch.global_batch_size={ROWS}", "optim.lr=3e-4", "optim.weight_decay=0.1",
    "optim.warmup_steps=4", "optim.min_lr_ratio=0.1", "optim.max_grad_norm=0.5", "train.num_samples=0",
    "data.heldout_share=0", "train.export=false", "data.max_heldout_documents=null",
)  # fmt: skip
Record = Callable[[str, object], None]


def _reference(config: Any, data: Path, file: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from ftdist.verify.compare import run_reference
    from ftdist.verify.reference import read_rows, row_order

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(config.model.path, dtype=torch.float32)
    rows = read_rows(data / "train")
    torch.save(run_reference(model, config, rows, row_order(config.seed, len(rows), STEPS * ROWS), STEPS, []), file)


def _sharded_runs(configs: List[Any], folder: Path) -> List[Deviation]:
    import torch

    from ftdist.verify.compare import measure_deviation

    expected = torch.load(folder / REFERENCE, weights_only=False)
    return [measure_deviation(training, expected, STEPS) for training in each_training(configs, folder)]


@pytest.fixture(scope="module", params=[True, False], ids=["packed", "padded"])
def reference(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from ftdist.run.prepared import data_folder

    folder = tmp_path_factory.mktemp("reference")
    save_tiny_model(folder / "model")
    packing = f"data.packing={str(request.param).lower()}"
    config = tiny_config(folder, *SETTINGS, packing)
    freeze_tiny(config, folder / "run", 1)
    run_ranks(_reference, 1, config, data_folder(config), folder / REFERENCE)
    return folder, packing


CHOICES = list(itertools.product([0, 1, 2, 3], [1, 4], ["full", "none"]))
"""ZeRO stage, accumulation steps, gradient checkpointing."""


def _choices_here(world_size: int, packing: str) -> List[Any]:
    """Return one choice for each ZeRO stage on two ranks, and for half of the stages on one and on four ranks. Over all
    numbers of ranks and both packings, every choice appears."""
    packed = packing.endswith("true")
    shift = {1: 0, 2: 1, 4: 2}[world_size] + 2 * packed
    return [CHOICES[4 * stage + (stage + shift) % 4] for stage in range(4) if world_size == 2 or stage % 2 != packed]


def test_the_short_suite_contains_every_choice_and_every_pair() -> None:
    """Every combination of stage, accumulation and recomputation; every pair of these with ranks and packing."""
    places = list(itertools.product([1, 2, 4], [False, True]))
    here = [(choice, place) for place in places for choice in _choices_here(place[0], f"={str(place[1]).lower()}")]
    assert {choice for choice, _ in here} == set(CHOICES)
    assert {place for _, place in here} == set(places)
    for axis, values in enumerate(zip(*CHOICES, strict=True)):
        for other, there in enumerate(zip(*places, strict=True)):
            pairs = {(choice[axis], place[other]) for choice, place in here}
            assert pairs == set(itertools.product(values, there)), f"axes {axis} and {other}"


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_twelve_steps_equal_the_reference(reference: Any, world_size: int, record_property: Record) -> None:
    _compare(reference, world_size, _choices_here(world_size, reference[1]), record_property)


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_twelve_steps_of_every_choice(reference: Any, world_size: int, record_property: Record) -> None:
    _compare(reference, world_size, CHOICES, record_property)


def _compare(reference: Any, world_size: int, cases: List[Any], record_property: Record) -> None:
    folder, packing = reference
    configs = [
        tiny_config(
            folder, *SETTINGS, packing, f"zero.stage={stage}", f"batch.micro_batch_size={ROWS // world_size // accum}",
            f"train.gradient_checkpointing={recompute}",
        )
        for stage, accum, recompute in cases
    ]  # fmt: skip
    everyone = run_ranks(_sharded_runs, world_size, configs, folder)
    for case, deviation in zip(cases, everyone[0], strict=True):
        beyond = deviation.beyond(ALLOWED[Precision.fp32])
        assert not beyond, f"stage, accumulation, gradient checkpointing {case}: {beyond}"
    assert all(other == everyone[0] for other in everyone), "ranks report different numbers"
    record_property("combinations", len(cases))


def test_the_loss_falls(reference: Any) -> None:
    import torch

    losses = torch.load(reference[0] / REFERENCE, weights_only=False).losses
    assert losses[-1] < losses[0] - 0.1


@pytest.mark.parametrize(
    ("axes", "chosen", "ranks"), [(AXES, covering(), 80), (METHOD_AXES, covering_methods(), 49)],
    ids=["families", "methods"],
)  # fmt: skip
def test_the_covering_covers_every_pair(axes: Axes, chosen: List[Case], ranks: int) -> None:
    assert {pair for case in every_case(axes) for pair in invariance.pairs(case, axes)} == {
        pair for case in chosen for pair in invariance.pairs(case, axes)
    }
    assert len(chosen) < 60 and sum(case.world_size for case in chosen) < ranks
    assert len(set(chosen)) == len(chosen)


def _for_ci(cases: List[Case], axes: Axes = AXES) -> List[Case]:
    """Return the cases that CI runs: few that contain every choice on each axis with and without ZeRO-3."""

    def choices(case: Case) -> set:
        return {(case.stage == 3, axis, getattr(case, axis)) for axis in axes}

    missing = set().union(*map(choices, cases))
    chosen: List[Case] = []
    while missing:
        chosen.append(max(cases, key=lambda case: len(missing & choices(case)) / case.world_size))
        missing -= choices(chosen[-1])
    return chosen


@pytest.mark.parametrize(
    ("axes", "chosen"), [(AXES, _for_ci(covering())), (METHOD_AXES, _for_ci(covering_methods(), METHOD_AXES))],
    ids=["families", "methods"],
)  # fmt: skip
def test_ci_runs_every_choice_with_and_without_zero3(axes: Axes, chosen: List[Case]) -> None:
    for axis, values in axes.items():
        for zero3 in (False, True):
            here = {getattr(case, axis) for case in chosen if (case.stage == 3) is zero3}
            assert here == {value for value in values if axis != "stage" or (value == 3) is zero3}, (axis, zero3)
    assert sum(case.world_size for case in chosen) < 30


def _marked(cases: List[Case], axes: Axes = AXES) -> List[Any]:
    """Return the cases for ``parametrize``. Those that CI does not run are slow."""
    fast = _for_ci(cases, axes)
    return [pytest.param(case, id=invariance.name(case), marks=[] if case in fast else [pytest.mark.slow])
            for case in cases]  # fmt: skip


@pytest.fixture(scope="module")
def deviations(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Dict[Case, Deviation]:
    """Run all selected cases at once and return the deviation of each."""
    names = (
        "test_every_pair_of_choices",
        "test_families_that_need_a_slower_way",
        "test_every_pair_of_a_method",
    )
    items = [item for item in request.session.items if getattr(item, "originalname", "") in names]
    here = [item for item in items if not item.get_closest_marker("skip")]
    cases = [item.callspec.params["case"] for item in here]  # type: ignore[attr-defined]
    return invariance.run_cases(cases, tmp_path_factory.mktemp("covering"))


@pytest.mark.parametrize("case", _marked(covering()))
def test_every_pair_of_choices(case: Case, deviations: Dict[Case, Deviation], record_property: Record) -> None:
    assert not deviations[case].beyond(ALLOWED[case.precision])
    record_property("combinations", 1)


@pytest.mark.parametrize("case", _marked(covering_methods(), METHOD_AXES))
def test_every_pair_of_a_method(case: Case, deviations: Dict[Case, Deviation], record_property: Record) -> None:
    assert not deviations[case].beyond(ALLOWED[case.precision])
    record_property("combinations", 1)


@pytest.mark.parametrize("case", invariance.other_families(), ids=invariance.name)
def test_families_that_need_a_slower_way(
    case: Case, deviations: Dict[Case, Deviation], record_property: Record
) -> None:
    assert not deviations[case].beyond(ALLOWED[case.precision])
    record_property("combinations", 1)


COMPILED = Case("llama", 0, 1, 2, True, "", Precision.fp32, False, True, compile=Compile.layers)
"""Rows of different documents. A compiled layer that saw the empty weights of ZeRO-3 would fail, or compute something
else. Each case asserts the number of compilations."""


def _compare_all(cases: List[Case], folder: Path, record_property: Record) -> None:
    found = invariance.run_cases(cases, folder)
    wrong = {invariance.name(case): beyond for case in found if (beyond := found[case].beyond(ALLOWED[case.precision]))}
    assert not wrong
    record_property("combinations", len(cases))


def test_compiled_layers_with_adapters_give_the_numbers_of_the_reference(
    tmp_path: Path, record_property: Record
) -> None:
    _compare_all([COMPILED._replace(stage=3, method="lora")], tmp_path, record_property)


COMPILED_CASES = {
    "fp32": [
        COMPILED._replace(stage=stage, world_size=world_size, recompute=recompute, packing=packing)
        for stage, world_size, recompute, packing in (
            (0, 1, "", True), (3, 1, "selective", True), (1, 2, "recompute", True), (2, 2, "selective", True),
            (3, 2, "", True), (3, 2, "recompute", True), (3, 2, "offloaded", True), (3, 2, "", False),
            (1, 4, "", True), (2, 4, "recompute", False), (3, 4, "selective", True),
        )
    ],
    "bf16": [
        COMPILED._replace(stage=stage, world_size=world_size, recompute=recompute, precision=Precision.bf16)
        for stage, world_size, recompute in ((0, 1, ""), (2, 2, "recompute"), (3, 2, ""), (3, 4, "selective"))
    ],
    "adapters": [
        COMPILED._replace(stage=stage, world_size=world_size, method="lora")
        for stage, world_size in ((0, 1), (2, 2), (3, 2))
    ],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("group", COMPILED_CASES)
def test_compiled_layers_give_the_numbers_of_the_reference(group: str, tmp_path: Path, record_property: Record) -> None:
    _compare_all(COMPILED_CASES[group], tmp_path, record_property)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("world_size", AXES["world_size"])
@pytest.mark.parametrize("family", AXES["family"])
def test_every_stage_of_a_family_in_every_precision_packed_and_padded(
    family: str, world_size: int, tmp_path: Path, record_property: Record
) -> None:
    every = crossed(("family", "stage", "world_size", "packing", "precision"))
    cases = [case for case in every if (case.family, case.world_size) == (family, world_size)]
    assert len(cases) == 16
    _compare_all(cases, tmp_path, record_property)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("world_size", AXES["world_size"])
@pytest.mark.parametrize("method", METHOD_AXES["method"])
def test_every_stage_of_a_method_packed_and_padded(
    method: str, world_size: int, tmp_path: Path, record_property: Record
) -> None:
    cases = [case for case in crossed_methods() if (case.method, case.world_size) == (method, world_size)]
    assert len(cases) == 10
    _compare_all(cases, tmp_path, record_property)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "mixtral", "gemma3"])
def test_adapters_in_other_families_with_every_parameter_sharded(
    family: str, tmp_path: Path, record_property: Record
) -> None:
    """Transposed weights with biases (GPT-2), experts that are one tensor (Mixtral), a scaled embedding (Gemma 3)."""
    first = FIRST._replace(family=family, stage=3, world_size=2, accum=2, clip=True, none_whole=True)
    _compare_all([first._replace(method=method) for method in ("dora", "qlora")], tmp_path, record_property)
