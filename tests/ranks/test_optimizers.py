"""Every optimizer at every ZeRO stage: the numbers of its plain reference, exact resumes, the memory that is planned.

All cases share one model and one group of ranks, because starting ranks takes longer than a case.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Tuple

import pytest

from ftdist.config.optim import OPTIMIZERS
from ftdist.verify.compare import ALLOWED, allowed_with
from tests.helpers.ranks import run_ranks
from tests.helpers.tiny import freeze_tiny, save_tiny_model, tiny_config
from tests.helpers.training import assemble, each_training, fingerprint, save, start, steps

pytestmark = [pytest.mark.process, pytest.mark.timeout(600)]
STEPS, ROWS = 2, 8
SETTINGS = (
    "train.max_steps=6", f"batch.global_batch_size={ROWS}", "optim.weight_decay=0.1", "optim.schedule=constant",
    "optim.max_grad_norm=0.5", "train.num_samples=0", "data.heldout_share=0", "data.max_heldout_documents=null",
    "train.export=false", "train.gradient_checkpointing=none",
)  # fmt: skip
SMALL = 0.08
"""Share of the parameters of the model that are in tensors below 4096 elements."""
BF16, OFFLOAD = "train.precision=bf16", "zero.offload_optimizer=cpu"
LORA_PLUS = ("method.kind=lora", "method.r=4", "optim.lora_plus_ratio=8")
Case = Tuple[str, int, Tuple[str, ...]]
CASES: List[Case] = [  # optimizer, stage, more settings
    *(("lion", stage, ("optim.lr=1e-3",)) for stage in range(4)), ("lion", 2, ("optim.lr=1e-3", BF16, OFFLOAD)),
    ("sgd", 0, ("optim.lr=0.5", BF16)), ("sgd", 1, ("optim.lr=0.5",)), ("sgd", 2, ("optim.lr=0.5", "optim.momentum=0")),
    ("sgd", 3, ("optim.lr=0.5", BF16, OFFLOAD)),
    ("adafactor", 0, ("optim.lr=1e-2",)), ("adafactor", 0, ("optim.lr=1e-2", BF16)),
    ("muon", 0, ("optim.lr=1e-3",)), ("muon", 0, ("optim.lr=1e-3", BF16)), ("muon", 0, ("optim.lr=1e-3", *LORA_PLUS)),
    ("adamw", 1, ("optim.lr=1e-3", *LORA_PLUS)), ("adamw", 3, ("optim.lr=1e-3", *LORA_PLUS)),
    ("adamw_8bit", 0, ("optim.lr=1e-3",)), ("adamw_8bit", 1, ("optim.lr=1e-3",)),
    ("adamw_8bit", 2, ("optim.lr=1e-3", BF16, OFFLOAD)), ("adamw_8bit", 3, ("optim.lr=1e-3",)),
]  # fmt: skip


def name_of(case: Case) -> str:
    words = [word.split("=")[1] for word in case[2][1:]]
    return "-".join([case[0], f"stage{case[1]}", *words])


def case_config(folder: Path, case: Case, world_size: int = 2) -> Any:
    optimizer, stage, more = case
    return tiny_config(folder, *SETTINGS, f"optim.optimizer={optimizer}", f"zero.stage={stage}",
                       f"batch.micro_batch_size={ROWS // world_size // 2}", *more)  # fmt: skip


def _references(cases: List[Case], folder: Path) -> None:
    """Write what the plain reference gives for each case."""
    import torch
    from transformers import AutoModelForCausalLM

    from ftdist.method.build import METHODS
    from ftdist.model.load import DTYPES
    from ftdist.run.prepared import data_folder
    from ftdist.verify.compare import run_reference
    from ftdist.verify.reference import read_rows, row_order

    torch.set_num_threads(1)
    for number, case in enumerate(cases):
        config = case_config(folder, case)
        rows = read_rows(data_folder(config) / "train")
        order = row_order(config.seed, len(rows), STEPS * ROWS)
        model = AutoModelForCausalLM.from_pretrained(config.model.path, dtype=DTYPES[config.train.precision])
        model = METHODS[config.method.kind].apply(model, config)
        torch.save(run_reference(model, config, rows, order, STEPS, []), folder / f"{number}.pt")


@dataclass(frozen=True)
class Found:
    """What one case gave on two ranks."""

    deviation: Any
    exact: bool
    """Whether a resume gave the same losses and left the same state, bit for bit."""
    losses: List[float]
    """Of ``STEPS`` steps, then a save, then two more."""
    bytes_each: float
    """Bytes of the states for each trained parameter, over all ranks that hold a part of them."""
    saved: float
    """The same, in the checkpoint."""
    names: set
    """Names of the states."""


def _cases(cases: List[Case], folder: Path) -> List[Found]:
    import torch

    from ftdist.verify.compare import measure_deviation

    found, ranks = [], start(case_config(folder, cases[0]))
    for number, case in enumerate(cases):
        config, path = case_config(folder, case), folder / f"run-{number}"
        training, expected = assemble(config, path, ranks), torch.load(folder / f"{number}.pt", weights_only=False)
        deviation = measure_deviation(training, expected, STEPS)
        training.state.step = STEPS
        save(training)
        before, sizes = fingerprint(training.engine), _sizes(training)
        more = steps(training, 2)
        after = fingerprint(training.engine)
        training.engine.destroy()
        resumed = assemble(config, path, ranks)
        exact = fingerprint(resumed.engine) == before and resumed.state.step == STEPS
        exact &= steps(resumed, 2) == more and fingerprint(resumed.engine) == after
        resumed.engine.destroy()
        losses = [*expected.losses, *(loss for loss, _ in more)]
        found.append(Found(deviation, exact, losses, *sizes))
    return found


def _sizes(training: Any) -> Tuple[float, float, set]:
    """Return the bytes of the states for each trained parameter in memory and in the checkpoint, and their names."""
    import math

    import torch
    import torch.distributed as dist

    from ftdist.checkpoint.tensors import Stored

    engine = training.engine
    held = [(name, value.numel() * value.element_size()) for state in engine.optimizer.state.values()
            for name, value in state.items()
            if name not in ("step", "qmap1", "qmap2") and torch.is_tensor(value)]  # fmt: skip
    total = torch.tensor(float(sum(size for _, size in held)))
    if engine.stage:
        dist.all_reduce(total)
    numbers = sum(math.prod(shape) for shape in engine.trained_shapes().values())
    checkpoint = training.run.published_checkpoints()[-1]
    stored = Stored(sorted(checkpoint.glob("rank-*.safetensors")))
    saved = sum(part[0:count].nbytes for (state, _), parts in stored._parts.items() for _, count, part in parts
                if state in {*engine.spec.states, *engine.spec.others})  # fmt: skip
    return float(total) / numbers, saved / numbers, {name for name, _ in held}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import peft  # noqa: F401 - so that no forked rank has to import it

    folder = tmp_path_factory.mktemp("optimizers")
    save_tiny_model(folder / "model")
    freeze_tiny(tiny_config(folder, *SETTINGS), folder / "prepared", 1)
    run_ranks(_references, 1, CASES, folder)
    return folder


@pytest.fixture(scope="module")
def found(folder: Path) -> List[Found]:
    return run_ranks(_cases, 2, CASES, folder, timeout_s=400)[0]


@pytest.mark.parametrize("number", range(len(CASES)), ids=map(name_of, CASES))
def test_it_equals_its_plain_reference_and_a_resume_is_exact(number: int, folder: Path, found: List[Found]) -> None:
    case = found[number]
    config = case_config(folder, CASES[number])
    assert not case.deviation.beyond(allowed_with(config, ALLOWED[config.train.precision]))
    assert case.exact
    assert case.losses[-1] < case.losses[0]


@pytest.mark.parametrize("number", range(len(CASES)), ids=map(name_of, CASES))
def test_the_states_take_the_memory_that_is_planned(number: int, folder: Path, found: List[Found]) -> None:
    from ftdist.config.optim import optimizer_of

    config, case = case_config(folder, CASES[number]), found[number]
    planned, spec = optimizer_of(config.optim).bytes_per_parameter, OPTIMIZERS[config.optim.optimizer]
    assert case.names <= {*spec.states, *spec.others}
    if spec.at_most is None:
        assert case.bytes_each == pytest.approx(planned, rel=2e-3)  # flat parts are padded
        assert case.saved == planned
    else:
        if CASES[number][:2] == ("adamw_8bit", 0):
            planned += 6 * SMALL  # 8 bytes instead of 2 for tensors that stay in fp32
        assert planned / 4 < case.bytes_each <= planned and case.saved == pytest.approx(case.bytes_each, rel=2e-3)


MOVED = [number for number, case in enumerate(CASES) if not {BF16, OFFLOAD} & {*case[2]}]


def _elsewhere(cases: List[Case], folder: Path) -> Dict[int, List[float]]:
    """Resume runs on one rank, at another stage if the states can be cut. Returns their losses."""
    from ftdist.base.errors import CheckpointError

    losses = {}
    for number in MOVED:
        config = case_config(folder, cases[number], world_size=1)
        path, ranks = folder / f"run-{number}", start(config)
        if config.optim.optimizer.name == "adamw_8bit" and config.zero.stage:
            with pytest.raises(CheckpointError, match="saved by 2 ranks with ZeRO-.*8-bit states .* cannot be divided"):
                assemble(config, path, ranks)
            continue
        if config.optim.optimizer.name not in ("adafactor", "muon", "adamw_8bit"):
            config.zero.stage = (config.zero.stage + 2) % 4
        training = assemble(config, path, ranks)
        assert training.state.step == STEPS
        losses[number] = [loss for loss, _ in steps(training, 2)]
        training.engine.destroy()
    return losses


def test_a_run_continues_on_other_ranks_at_another_stage(folder: Path, found: List[Found]) -> None:
    for number, losses in run_ranks(_elsewhere, 1, CASES, folder)[0].items():
        assert losses == pytest.approx(found[number].losses[STEPS:], rel=1e-5), name_of(CASES[number])


LONG, EIGHT_BIT_LOSS = 50, 5e-3
"""Steps of the long runs, and the largest relative difference of a loss from that of AdamW with fp32 states."""


def _long_runs(configs: List[Any], folder: Path) -> List[List[float]]:
    trainings = each_training(configs, folder / "long")
    return [[loss for loss, _ in steps(training, LONG)] for training in trainings]


def test_fifty_steps_with_8_bits_follow_adamw_in_fp32(folder: Path) -> None:
    kinds = [("adamw", 1), ("adamw_8bit", 0), ("adamw_8bit", 1), ("adamw_8bit", 3)]
    long = ("optim.lr=1e-3", f"train.max_steps={LONG}", "optim.warmup_steps=5")
    configs = [case_config(folder, (kind, stage, long)) for kind, stage in kinds]
    fp32, *eight = run_ranks(_long_runs, 2, configs, folder)[0]
    assert fp32[-1] < fp32[0] - 1
    for losses in eight:
        worst = max(abs(a - b) / b for a, b in zip(losses, fp32, strict=True))
        assert 1e-6 < worst < EIGHT_BIT_LOSS
